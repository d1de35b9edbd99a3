package templates

import (
	"html/template"
	"time"

	"imageroot/shared/image"
	"imageroot/shared/layout"
)

// A Frame is what every page has around it.
type Frame struct {
	Title   string
	Version string
	// Here is the page's entry of the navigation: "images", "events", "tokens" or "".
	Here string
	// SignedIn shows the navigation.
	SignedIn bool
	// Strip has the running jobs. Live is the URL that answers with the fragments of the
	// page that have changed, or "" if none change.
	Strip Fragment
	Live  string
	// Notice is the result of the last action.
	Notice string
}

// Login is the page that asks for the password.
type Login struct {
	Frame
	Next  string
	Error string
}

// Problem is the page of an error.
type Problem struct {
	Frame
	Status    int
	Text      string // of the status
	Detail    string
	RequestID string
	// Back is the page to return to.
	Back string
	// Login is set if logging in helps.
	Login bool
}

// Tokens is the page of the tokens of machines.
type Tokens struct {
	Frame
	New    *NewToken
	Name   string // of the form
	Scopes []Option
	Error  string
	Tokens []Token
}

// A NewToken was made just now, and is shown once.
type NewToken struct{ Name, Token string }

// A Token is one of a machine.
type Token struct {
	Name, Scope string
	Made        Time
	Used        *Time  // nil: not known
	Revoke      string // action
}

// A Size is a number of bytes.
type Size struct {
	Text  string // "1.5 GiB"
	Exact string // "1,610,612,736 bytes"
}

// A Time is a moment.
type Time struct {
	At       time.Time
	Relative string // "5 minutes ago"
}

// Machine returns the time for programs (RFC 3339).
func (t Time) Machine() string { return t.At.UTC().Format(time.RFC3339) }

// Absolute returns the time for people.
func (t Time) Absolute() string { return t.At.UTC().Format("2006-01-02 15:04:05 UTC") }

// Date returns the day.
func (t Time) Date() string { return t.At.UTC().Format("2006-01-02") }

// Images is the page of the catalog.
type Images struct {
	Frame
	Add   Add
	Query Query
	Parts
}

// Parts are the parts of the page of images that are sent again when they change.
type Parts struct {
	Catalog, Ended, Disks, Recent, Others Fragment
}

// AddPage is the page of the forms that add images, for browsers without scripts.
type AddPage struct {
	Frame
	Add Add
}

// Add has the forms that add images.
type Add struct {
	ImageURL, Name, SHAURL, SHA256 string
	Refresh                        bool
	Error                          string
	Upload                         Shell
}

// Query is the form of a search.
type Query struct {
	Text    string
	Sort    string
	Sorts   []Option
	Filters []Detail // the other fields of the query
}

// An Option is one of a select.
type Option struct {
	Value, Text string
	Selected    bool
}

// Shell has the commands that upload an image without a browser.
type Shell struct {
	AWS, Curl string
}

// Summary is the size of the catalog.
type Summary struct {
	Stored   Size
	Location string
}

// Catalog is a page of the rows of a search.
type Catalog struct {
	// Problem is the error of the manifest, or "". Notes are its warnings.
	Problem string
	Notes   []string
	Summary Summary
	Chips   []Chip
	Rows    []Row
	Total   string
	One     bool
	// Searched is set if the query has words or filters.
	Searched bool
	// First and Next are the URLs of pages, or "".
	First, Next string
	Columns     []Column
	// Begin is set if the catalog is empty.
	Begin *Begin
}

// A Chip is a link to the rows of a filter.
type Chip struct {
	ID, Text, URL string
	On            bool
	Remove        bool // the link removes the filter
}

// A Link is a text with a URL.
type Link struct{ Text, URL string }

// A Column is the head of a column.
type Column struct {
	ID, Text string
	// Sort is the URL of the rows sorted by the column, or empty.
	Sort string
	// Order is "ascending", "descending" or "none".
	Order string
}

// Begin explains how to add the first image.
type Begin struct {
	Formats  []string
	Location string
	Shell    Shell
}

// A Row is one content of the catalog.
type Row struct {
	ID     string // for elements: stays with the row
	Page   string // the URL of the image's page
	Name   image.Name
	Title  string // or ""
	Status Status
	Format string
	// System and Arch are what runs on it, with URLs of the rows that have it.
	System, Arch *Link
	Size         *Size
	// Virtual is the size of the disk.
	Virtual *Size
	Added   *Time
	// Warning is the first warning, or "".
	Warning string
	// Failed is set if the last try to hash or fetch failed. Dismiss is the URL that ends
	// that.
	Failed  bool
	Dismiss string
	// Fetching is the location that it is being fetched from, or "".
	Fetching string
	Actions
	// Batch is the JSON of what can be done with several rows.
	Batch string
}

// A Status is the state of an image in words.
type Status struct {
	Kind string // for styles: good, busy, waiting, missing, failed
	Text string
	Busy bool // a job runs
}

// Actions are what can be done with an image.
type Actions struct {
	// Download is the path of the bytes, or "". Raw is the path of the disk in them,
	// if it has other bytes, and Disk the name of that.
	Download  string
	Flash     bool // the page of the image says how to flash it
	Raw, Disk string
	// MakeDisk is set if the disk can be expanded, and is not.
	MakeDisk bool
	// Hash is the name of the image to hash, or "".
	Hash string
	// Check is the name of the image to check, or "".
	Check string
	// Fetch is the location to fetch from, or "".
	Fetch string
	// Refresh is the URL of an entry to resolve again, or "".
	Refresh string
	// Uncache is set if there are fetched bytes to drop.
	Uncache bool
}

// A Source is a place of a row's bytes.
type Source struct {
	ID       string
	Kind     string // local, manifest, url
	Location string
	// Link is the location if a browser can open it, else "".
	Link string
	// What and Key are the parameters of the question about deleting the source; ""
	// if the pages cannot delete it.
	What, Key string
	Name      image.Name
	// Rename is the URL that renames it, or "". Fitting is the name whose suffix fits its
	// content, or "" if its own fits.
	Rename  string
	Fitting image.Name
}

// Running are the jobs that have not ended.
type Running struct {
	List []Job
	More string // how many are not shown, or ""
}

// Ended are the jobs that have ended: those that failed, and the others.
type Ended struct {
	Failures   int
	Failed     []Job
	MoreFailed string // how many are not shown, or ""
	Counts     string // "3 completed, 1 cancelled"
	List       []Job
	More       string // how many are not shown, or ""
}

// Disks are the expanded disks.
type Disks struct {
	Count  string
	One    bool
	Stored Size  // what they take
	Limit  *Size // what they may take; nil if none are made
	List   []Disk
	More   string // how many are not shown, or ""
}

// A Disk is the expanded disk of an image.
type Disk struct {
	ID           string
	Name         image.Name
	SHA256       layout.SHA256
	Size, Stored Size
}

// A Job is a hash, check, disk or fetch job.
type Job struct {
	ID     string
	Name   image.Name
	Page   string // the URL of the image's page, or ""
	Stage  string // "check", "disk" or ""
	Verb   string // what it does: "hashing", "fetching", ...
	Status string
	// Active is set if it can be cancelled.
	Active bool
	Cancel string // the path to cancel it at, or to dismiss its failure
	Retry  *Retry // of a failed job
	Src    string
	Done   Size
	Total  *Size
	// Value and Max are of the progress bar; Max is 0 if it is not known.
	Value, Max int64
	Percent    string
	Error      string
	When       *Time
}

// A Retry is the form that queues a job again.
type Retry struct{ Action, Field, Value string }

// Others are the objects in the image root that are not images.
type Others struct {
	Count string
	One   bool
	List  []Detail // names, and why they are not images
	More  string   // how many are not shown, or ""
}

// Recent are the newest events.
type Recent struct {
	Events []Event
}

// An Event is an event of the activity.
type Event struct {
	When      Time
	Kind      string
	Failed    bool
	Subject   string // "image", "catalog" or "auth"
	SubjectID string
	Page      string // the URL of the image's page, or ""
	Fetch     string // the URL of an image to fetch, or ""
	Actor     string
	SourceIP  string
	Summary   string
	Details   []Detail
}

// A Detail is a named value.
type Detail struct{ Name, Value string }

// Events is the page of the activity.
type Events struct {
	Frame
	Kinds, Subjects, Actors, Outcomes, Limits []Option
	SubjectID, SourceIP                       string
	Filtered                                  bool
	Error                                     string
	Events                                    []Event
	// Older and Newest are the URLs of pages, or "".
	Older, Newest string
}

// Live are the fragments that have changed.
type Live struct {
	Fragments []Fragment
}

// Confirm is the page that asks before something is deleted or replaced.
type Confirm struct {
	Frame
	Question string
	Text     string
	Facts    []Detail
	// Action is the URL that the form posts to.
	Action string
	Button string
	Done   string // the message after it
	Back   string // the URL of the page that asks
	// Choice marks a question of the page's script, which posts nothing.
	Choice bool
}

// ImagePage is the page of an image.
type ImagePage struct {
	Frame
	About Fragment
	Edit  *Edit // nil if the image has no digest yet
}

// About is what changes of the page of an image.
type About struct {
	Gone   bool   // it was deleted, and nothing else is set
	ID     string // of its elements
	Name   image.Name
	Title  string // or ""
	Status Status
	// Description is the text about it, or "". HomePage is its URL, or "".
	Description, HomePage string
	Facts                 []Fact
	Labels                []Link
	Boots                 []string // sentences
	Partitions            []Partition
	Unknown               []string // sentences about what could not be read
	Flash                 *Flash   // nil if there are no bytes here
	SHA256, RawSHA256     layout.SHA256
	SameDisk              []Link // other images with this disk
	Verified              []Verified
	Sources               []Source
	Warnings              []string
	Failed                bool
	Dismiss               string
	Actions
	Jobs   []Job
	Served []Served
	Events []Event
}

// A Fact is a property of an image, and where it is from: "said by the operator".
type Fact struct {
	Name, Value, From string
	URL               string // of the images that have it, or ""
}

// A Partition is one of a disk. X and Width are of a drawing that is 1000 wide.
type Partition struct {
	Number   int
	Text     string // what is in it
	Label    string
	Start    Size
	Size     Size
	X, Width int
	Color    int // 0 to 5
}

// Flash has the commands that write an image to a disk.
type Flash struct {
	Disk     *Size // the least size of the disk; nil if it is not known
	Commands []Command
	// Imager opens Raspberry Pi Imager with the catalog; "" if the image is not in its list.
	Imager template.URL
}

// A Command is a line for a terminal.
type Command struct {
	Title string
	Text  string
	Note  string // or ""
	Open  bool   // shown at once
}

// Verified is the result of a comparison with what a publisher says.
type Verified struct {
	Kind string // good, bad or missing
	Text string
}

// Served is a client that got the bytes.
type Served struct {
	To   string
	What string
	When Time
}

// Edit is the form of what the operator says about an image.
type Edit struct {
	Action string
	Fields []Field
}

// A Field is one of a form. Value is what the operator said, Other what is known without.
type Field struct {
	Name, Text, Value, Other string
	Long                     bool
	Options                  []Option
}
