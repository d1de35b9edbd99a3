package templates

import "time"

// A Frame is what every page has around it.
type Frame struct {
	Title   string
	Version string
	// Here is the page's entry of the navigation: "images", "events" or "".
	Here string
	// SignedIn shows the navigation.
	SignedIn bool
	// Notice is what became of what the person did before.
	Notice string
}

// Login is the page that asks for the password.
type Login struct {
	Frame
	Next  string
	Error string
}

// Problem is the page of something that did not work.
type Problem struct {
	Frame
	Status    int
	Text      string // of the status
	Detail    string
	RequestID string
	// Back is where to go on.
	Back string
	// Login is set where logging in would help.
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

// Machine is the moment for programs.
func (t Time) Machine() string { return t.At.UTC().Format(time.RFC3339) }

// Absolute is the moment for people.
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
	Summary, Catalog, Downloads, Hashes, Recent, Others Fragment
}

// Add is the form of an image's URL.
type Add struct {
	ImageURL, SHAURL string
	Refresh          bool
	Error            string
}

// Query is the form of what to search for.
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

// Shell has the lines that bring an image in without a browser.
type Shell struct {
	AWS, Curl string
}

// Summary is how much there is.
type Summary struct {
	Count    string
	One      bool
	Stored   Size
	Location string
}

// Catalog is the rows of a search, and where the next ones are.
type Catalog struct {
	// Problem is what is wrong with the manifest.
	Problem string
	Rows    []Row
	Total   string
	One     bool
	// Searched is set where something was searched for.
	Searched bool
	// First and Next are URLs; empty where there is no such page.
	First, Next string
	Columns     []Column
	// Begin is set where the catalog is empty.
	Begin *Begin
}

// A Column is the head of one.
type Column struct {
	ID, Text string
	// Sort is the URL of the rows sorted by the column, or empty.
	Sort string
	// Order is "ascending" or "descending" where they are, else "none".
	Order string
}

// Begin is how to begin.
type Begin struct {
	Formats  []string
	Location string
	Shell    Shell
}

// A Row is one content of the catalog.
type Row struct {
	ID     string // for elements: stays with the row
	Before string // the ID of the element before the row
	Name   string
	Others []string // names
	SHA256 string
	Ref    string
	State  string // unhashed, queued, running, failed, published, hashed
	Format string
	Size   *Size
	// Content is what the bytes are, in words; empty if that is not known.
	// Virtual is how large a disk must be for them, where that is another size.
	Content string
	Virtual *Size
	Cached  bool
	// Fetching is set while a job brings the bytes.
	Fetching string
	// FetchFailed is set where the last fetch of missing bytes failed.
	FetchFailed bool
	Warnings    []string
	Sources     []Source
	// Download is a path, or empty; so is Raw, of the disk in an image that has
	// other bytes than its disk, which is called Disk.
	Download  string
	Raw, Disk string
	// Hash is the name of the image to hash, or empty.
	Hash string
	// Check is the name of the image to check, or empty.
	Check string
	// Fetch is the location to fetch from, or empty.
	Fetch string
	// Refresh is the URL of an entry to resolve again, or empty.
	Refresh string
	// Uncache is set where fetched bytes can be dropped.
	Uncache bool
}

// A Source is where bytes of a row are.
type Source struct {
	ID       string
	Kind     string // local, manifest, url
	Location string
	// Link is the location where a browser can open it, else empty.
	Link string
	// What and Key say what deleting the source deletes; see [Confirm]. Empty
	// where it cannot be deleted here.
	What, Key string
	Name      string
}

// Downloads and Hashes are lists of jobs.
type (
	Downloads struct{ Jobs }
	Hashes    struct{ Jobs }
)

// Jobs is a list of jobs.
type Jobs struct {
	Counts string // "1 running, 3 queued"
	List   []Job
	More   string // how many are not shown, or empty
}

// A Job is one hash or fetch.
type Job struct {
	ID     string
	Name   string
	Stage  string // "check", or empty
	Status string
	// Active says that it can be cancelled.
	Active bool
	Cancel string // the path to cancel it at
	Src    string
	Done   Size
	Total  *Size
	// Value and Max are for the progress bar; Max is 0 where not known.
	Value, Max int64
	Percent    string
	Error      string
	When       *Time
}

// Others is what is in the image root and is not an image.
type Others struct {
	Count string
	One   bool
	List  []Detail // names, and why they are not images
	More  string   // how many are not shown, or empty
}

// Recent is what happened last.
type Recent struct {
	Events []Event
}

// An Event is something that happened.
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

// Events is the page of what happened.
type Events struct {
	Frame
	Kinds, Subjects, Actors, Outcomes, Limits []Option
	SubjectID, SourceIP                       string
	Filtered                                  bool
	Error                                     string
	Events                                    []Event
	// Older and Newest are URLs; empty where there is no such page.
	Older, Newest string
}

// Live is the fragments that have changed.
type Live struct {
	Fragments []Fragment
}

// Confirm is the page that asks before something is deleted.
type Confirm struct {
	Frame
	Question string
	Text     string
	Facts    []Detail
	// Action is the URL that the form posts to.
	Action string
	Button string
	Done   string // what to say afterwards
	Back   string // the URL of the page that asks
	// Choice marks a question of the page's script, which posts nothing.
	Choice bool
}
