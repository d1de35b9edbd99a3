package templates

import (
	"time"

	"imageroot/shared/image"
	"imageroot/shared/layout"
)

// A Frame is what every page has around it.
type Frame struct {
	Title   string
	Version string
	// Here is the page's entry of the navigation: "images", "events" or "".
	Here string
	// SignedIn shows the navigation.
	SignedIn bool
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

// Images is the page of the catalog.
type Images struct {
	Frame
	Add    Add
	Query  Query
	Upload Shell
	Parts
}

// Parts are the parts of the page of images that are sent again when they change.
type Parts struct {
	Summary, Catalog, Downloads, Hashes, Disks, Recent, Others Fragment
}

// Add is the form of an image's URL.
type Add struct {
	ImageURL, SHAURL string
	Refresh          bool
	Error            string
}

// Query is the form of a search.
type Query struct {
	Text  string
	Sort  string
	Sorts []Option
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
	Count    string
	One      bool
	Stored   Size
	Location string
}

// Catalog is a page of the rows of a search.
type Catalog struct {
	// Problem is the error of the manifest, or "".
	Problem string
	Rows    []Row
	Total   string
	One     bool
	// Searched is set if the query has words.
	Searched bool
	// First and Next are the URLs of pages, or "".
	First, Next string
	Columns     []Column
	// Begin is set if the catalog is empty.
	Begin *Begin
}

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
	Before string // the ID of the element before the row
	Name   image.Name
	Others []image.Name // names
	SHA256 layout.SHA256
	Ref    string
	State  string // unhashed, queued, running, failed, published, hashed
	Format string
	Size   *Size
	// Content is the kind of the bytes in words, or "". Virtual is the size of the
	// disk that they need, if it is another one.
	Content string
	Virtual *Size
	Cached  bool
	// Fetching is the status of the fetch job, or "".
	Fetching string
	// FetchFailed is set if the bytes are missing because the fetch failed.
	FetchFailed bool
	Warnings    []string
	Sources     []Source
	// Download is the path of the bytes, or "". Raw is the path of the disk in them,
	// if it has other bytes, and Disk the name of that.
	Download  string
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
}

// Downloads and Hashes are lists of jobs.
type (
	Downloads struct{ Jobs }
	Hashes    struct{ Jobs }
)

// Disks are the expanded disks, and the jobs that make them.
type Disks struct {
	Jobs   Jobs
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

// Jobs is a list of jobs.
type Jobs struct {
	Counts string // "1 running, 3 queued"
	List   []Job
	More   string // how many are not shown, or ""
}

// A Job is a hash, check, disk or fetch job.
type Job struct {
	ID     string
	Name   image.Name
	Stage  string // "check", "disk" or ""
	Status string
	// Active is set if it can be cancelled.
	Active bool
	Cancel string // the path to cancel it at
	Src    string
	Done   Size
	Total  *Size
	// Value and Max are of the progress bar; Max is 0 if it is not known.
	Value, Max int64
	Percent    string
	Error      string
	When       *Time
}

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
