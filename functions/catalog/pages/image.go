package pages

import (
	"cmp"
	"context"
	"html/template"
	"maps"
	"net/http"
	"net/netip"
	"net/url"
	"path"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"imageroot/functions/catalog"
	"imageroot/shared/activity"
	"imageroot/shared/content"
	"imageroot/shared/disk"
	"imageroot/shared/image"
	"imageroot/shared/inventory"
	"imageroot/shared/layout"
	"imageroot/shared/metadata"
	"imageroot/shared/problem"
	"imageroot/shared/served"
	"imageroot/shared/source/scheme"
	"imageroot/shared/web"
	"imageroot/templates"
)

// image answers GET /ui/images/{key}: the page of the image with this SHA-256, or with
// this name, or of the source at ?src=.
func (p *Pages) image(w http.ResponseWriter, r *http.Request) error {
	row, about, err := p.about(r)
	if err != nil {
		return err
	}
	page := &templates.ImagePage{Frame: p.frame(w, r, string(row.Names[0]), "images")}
	if page.Strip, err = p.strip(r.Context()); err != nil {
		return err
	}
	if page.About, err = templates.NewFragment(about); err != nil {
		return err
	}
	if page.Edit, err = p.edit(r.Context(), row); err != nil {
		return err
	}
	page.Live = liveImagePath(r)
	return p.show(w, r, http.StatusOK, page)
}

// liveImagePath returns the URL that answers with what has changed on the page of r.
func liveImagePath(r *http.Request) string {
	path := imagesPath + "/" + url.PathEscape(r.PathValue("key")) + "/live"
	if src := r.URL.Query().Get("src"); src != "" {
		path += "?" + url.Values{"src": {src}}.Encode()
	}
	return path
}

// liveImage answers GET /ui/images/{key}/live: the parts of the page of an image whose
// version is not the browser's.
func (p *Pages) liveImage(w http.ResponseWriter, r *http.Request) error {
	strip, err := p.strip(r.Context())
	if err != nil {
		return err
	}
	_, about, err := p.about(r)
	if err != nil && problem.From(err).Code == problem.NotFound {
		about, err = templates.About{Gone: true}, nil
	}
	if err != nil {
		return err
	}
	f, err := templates.NewFragment(about)
	if err != nil {
		return err
	}
	return p.showChanged(w, r, strip, f)
}

// edit returns the form of what the operator says about an image, or nil if it has no
// digest.
func (p *Pages) edit(ctx context.Context, row *inventory.Row) (*templates.Edit, error) {
	if row.SHA256 == nil {
		return nil, nil
	}
	d, err := p.Describe(ctx, string(row.Digest()))
	if err != nil {
		return nil, err
	}
	said, m := d.Operator, &row.Metadata
	text := func(name, title string, said string, known *metadata.Value[string]) templates.Field {
		f := templates.Field{Name: name, Text: title, Value: said, Long: name == "description"}
		if known != nil && known.From != metadata.Operator {
			f.Other = known.Value
		}
		return f
	}
	choice := func(f templates.Field, options []string) templates.Field {
		f.Options = []templates.Option{{Value: "", Text: cmp.Or(f.Other, "not known")}}
		for _, o := range options {
			f.Options = append(f.Options, templates.Option{Value: o, Text: o, Selected: o == f.Value})
		}
		return f
	}
	e := &templates.Edit{Action: "/catalog/images/" + string(row.Digest()) + "?_method=PATCH"}
	if len(row.Names) > 1 {
		names := templates.Field{Name: "name", Text: "Name that clients see", Value: string(said.Name)}
		var others []string
		for _, n := range row.Names {
			others = append(others, string(n))
		}
		names = choice(names, others)
		names.Options[0].Text = "the one known longest"
		e.Fields = append(e.Fields, names)
	}
	var labels []string
	for _, key := range slices.Sorted(maps.Keys(said.Labels)) {
		labels = append(labels, key+"="+said.Labels[key])
	}
	e.Fields = append(e.Fields,
		text("title", "Title", said.Title, m.Title),
		text("system", "System", said.System, m.System),
		text("version", "Version", said.Version, m.Version),
		choice(text("architecture", "Architecture", said.Architecture, m.Architecture), metadata.Architectures),
		text("release_date", "Released (YYYY-MM-DD)", said.ReleaseDate, m.ReleaseDate),
		choice(text("init_format", "Configuration at the first start", said.InitFormat, m.InitFormat), metadata.InitFormats),
		text("home_page", "Home page", said.HomePage, m.HomePage),
		text("icon", "Icon (URL)", said.Icon, m.Icon),
		templates.Field{Name: "devices", Text: "Devices, with commas", Value: strings.Join(said.Devices, ", ")},
		text("description", "Description", said.Description, m.Description),
		templates.Field{Name: "labels", Text: "Labels, KEY=VALUE, one a line", Value: strings.Join(labels, "\n"), Long: true},
	)
	return e, nil
}

// find returns the row of the key and the source of r's URL.
func find(s *inventory.Snapshot, r *http.Request) (*inventory.Row, bool) {
	if src := r.URL.Query().Get("src"); src != "" {
		return s.BySource(layout.RefOf(src))
	}
	key := r.PathValue("key")
	if sha256, ok := layout.ParseSHA256(key); ok {
		return s.BySHA256(sha256)
	}
	return s.ByName(image.Name(key))
}

// about returns the row of r's image, and what its page shows.
func (p *Pages) about(r *http.Request) (*inventory.Row, templates.About, error) {
	ctx, now := r.Context(), p.Now()
	s, err := p.Inventory.Snapshot(ctx)
	if err != nil {
		return nil, templates.About{}, err
	}
	row, ok := find(s, r)
	if !ok {
		return nil, templates.About{}, problem.New(problem.NotFound, "there is no such image: it was deleted or replaced, or its digest has become known meanwhile")
	}
	jobs, err := p.jobsOf(ctx, row)
	if err != nil {
		return nil, templates.About{}, err
	}
	fetching := fetching(jobs)
	v := templates.About{
		ID: rowID(row), Name: row.Names[0], Status: statusOf(row, fetching), SHA256: row.Digest(),
		Warnings: row.Warnings, Sources: p.sources(row), Failed: hasFailed(row), Actions: p.actions(row, fetching),
		Facts: factsOf(row), Flash: p.flash(r, row), Verified: verified(s.Publishers(row), row, now),
		Title: row.Metadata.Title.Get(), Description: row.Metadata.Description.Get(), HomePage: webLink(row.Metadata.HomePage.Get()),
	}
	labels := row.Metadata.Labels.Get()
	for _, key := range slices.Sorted(maps.Keys(labels)) {
		text := key + "=" + labels[key]
		v.Labels = append(v.Labels, *filterLink("label", text, text))
	}
	for _, same := range row.SameDisk {
		v.SameDisk = append(v.SameDisk, templates.Link{Text: string(same.Name), URL: imagePath(same.SHA256, "", "")})
	}
	if row.Known != nil && row.Known.Inside != nil {
		v.Partitions, v.Unknown = partitions(row.Known.Inside), row.Known.Inside.Unknown
	}
	if row.RawSHA256 != nil {
		v.RawSHA256 = *row.RawSHA256
	}
	if v.Failed {
		v.Dismiss = dismissPath(row)
	}
	for i := range jobs.Jobs {
		v.Jobs = append(v.Jobs, jobView(&jobs.Jobs[i], now))
	}
	v.Boots = boots(row)
	past, err := p.past(ctx, s, row, statuses(jobs))
	if err != nil {
		return nil, templates.About{}, err
	}
	for _, d := range past.served {
		what := d.What
		if d.Link {
			what += ", by a link to the store"
		}
		if d.Token != "" {
			what += ", with the token " + d.Token
		}
		v.Served = append(v.Served, templates.Served{To: d.To, What: what, When: timeOf(d.At, now)})
	}
	v.Events = p.eventViews(s, past.events)
	return row, v, nil
}

// A past is what has happened to an image.
type past struct {
	snapshot *inventory.Snapshot
	jobs     string // see statuses
	at       time.Time
	events   []activity.Event
	served   []served.Delivery
}

const (
	// pastAge is how long the past of an image is cached if nothing else changes: it costs
	// the store a listing of the activity.
	pastAge = 30 * time.Second
	// keptPasts is the maximum number of images whose past is cached.
	keptPasts = 16
	// pastMost is the maximum number of its events, and of its deliveries.
	pastMost = 10
)

// past returns the newest events and deliveries of an image.
func (p *Pages) past(ctx context.Context, s *inventory.Snapshot, row *inventory.Row, jobs string) (past, error) {
	now, id := p.Now(), rowID(row)
	k := &p.kept.pasts
	k.Lock()
	defer k.Unlock()
	if old, ok := k.byRow[id]; ok && old.snapshot == s && old.jobs == jobs && now.Sub(old.at) < pastAge {
		return old, nil
	}
	events, err := p.eventsOf(ctx, row)
	if err != nil {
		return past{}, err
	}
	next := past{snapshot: s, jobs: jobs, at: now, events: events}
	if row.SHA256 != nil {
		deliveries, err := p.Served.List(ctx, *row.SHA256)
		if err != nil {
			return past{}, err
		}
		next.served = deliveries[:min(len(deliveries), pastMost)]
	}
	if len(k.byRow) >= keptPasts || k.byRow == nil {
		k.byRow = map[string]past{}
	}
	k.byRow[id] = next
	return next, nil
}

// eventsOf returns the newest events of an image, under all its names and sources.
func (p *Pages) eventsOf(ctx context.Context, row *inventory.Row) ([]activity.Event, error) {
	subjects := []string{string(row.Digest())}
	for _, n := range row.Names {
		subjects = append(subjects, string(n))
	}
	for _, s := range row.Sources {
		subjects = append(subjects, s.Location)
	}
	events, _, err := p.Activity.List(ctx, activity.Filter{Subjects: subjects, Limit: pastMost})
	return events, err
}

// factsOf returns what is known about an image.
func factsOf(row *inventory.Row) (list []templates.Fact) {
	add := func(name, value string) {
		if value != "" {
			list = append(list, templates.Fact{Name: name, Value: value})
		}
	}
	m := &row.Metadata
	describe := func(name, filter string, v *metadata.Value[string]) {
		if v == nil {
			return
		}
		f := templates.Fact{Name: name, Value: v.Value, From: origins[v.From]}
		if filter != "" {
			f.URL = filterLink(filter, v.Value, "").URL
		}
		list = append(list, f)
	}
	describe("System", "os", m.System)
	describe("Version", "", m.Version)
	describe("Architecture", "arch", m.Architecture)
	describe("Released", "", m.ReleaseDate)
	describe("First start", "", m.InitFormat)
	if m.Devices != nil {
		add("Devices", strings.Join(m.Devices.Value, ", "))
	}
	if in := insideOf(row); in != nil && in.CloudInit != nil {
		add("cloud-init", map[bool]string{true: "yes", false: "no"}[*in.CloudInit])
	}
	add("File name", string(row.Names[0]))
	if len(row.Names) > 1 {
		add("Also", image.Join(row.Names[1:]))
	}
	add("Format", string(row.Format))
	if k := row.Known; k != nil {
		add("Content", k.What)
	}
	if row.SizeBytes != nil {
		s := sizeOf(*row.SizeBytes)
		add("Size", s.Text+" ("+s.Exact+")")
	}
	if row.VirtualSizeBytes != nil {
		s := sizeOf(*row.VirtualSizeBytes)
		add("Disk", s.Text+" ("+s.Exact+")")
	}
	if row.Known != nil && row.Known.Disk != nil {
		s := sizeOf(row.Known.Disk.StoredBytes)
		add("Expanded", "takes "+s.Text+" here, any part of it can be read")
	}
	if c := checkOf(row); c != nil {
		add("Check", string(c.Verdict))
	}
	return list
}

// origins says where a value is from.
var origins = map[metadata.Origin]string{
	metadata.Operator: "said here", metadata.Manifest: "says the manifest", metadata.Annotation: "says the registry",
	metadata.Inspection: "found inside", metadata.Name: "by the name",
}

func insideOf(row *inventory.Row) *disk.Inside {
	if row.Known == nil {
		return nil
	}
	return row.Known.Inside
}

// boots returns which firmware can start an image.
func boots(row *inventory.Row) (list []string) {
	names := map[disk.BootKind]string{disk.BIOS: "by BIOS", disk.EFI: "by UEFI", disk.ElTorito: "from a CD", disk.RaspberryPi: "on a Raspberry Pi", disk.UBoot: "by U-Boot"}
	if in := insideOf(row); in != nil && len(in.Boot) > 0 {
		for _, b := range in.Boot {
			text := cmp.Or(names[b.Kind], string(b.Kind))
			if b.Arch != "" {
				text += ", " + string(b.Arch)
			}
			list = append(list, text)
		}
		return list
	}
	if row.Known == nil || row.Known.Boot == nil {
		return nil
	}
	if row.Known.Boot.BIOS {
		list = append(list, "by BIOS")
	}
	if row.Known.Boot.UEFI {
		list = append(list, "by UEFI")
	}
	return list
}

func checkOf(row *inventory.Row) *content.Check {
	if row.Known == nil {
		return nil
	}
	return row.Known.Check
}

// verified returns the results of comparisons with what publishers say, or what is
// missing for one.
func verified(publishers []inventory.Publisher, row *inventory.Row, now time.Time) (list []templates.Verified) {
	add := func(kind, text string) { list = append(list, templates.Verified{Kind: kind, Text: text}) }
	for _, p := range publishers {
		from := p.List
		if host := hostOf(p.List); host != p.List {
			from = path.Base(p.List) + " of " + host
		}
		switch {
		case p.Error != "":
			add("bad", from+": "+p.Error)
		case p.Match == nil:
			add("missing", "The bytes are compared with "+from+" when they are fetched.")
		case !*p.Match:
			add("bad", from+" says "+p.Expected+", which is not the "+p.Algorithm+" of these bytes.")
		case p.At != nil:
			add("good", "Verified against "+from+" on "+(templates.Time{At: *p.At}).Date()+".")
		default:
			add("good", "Verified against "+from+".")
		}
	}
	if len(publishers) > 0 || row.SHA256 == nil {
		return list
	}
	if name, ok := row.Local(); ok {
		add("missing", "Not compared with what a publisher says: put the publisher's checksum beside the image, as "+string(name)+".sha256, or add the publisher's URL.")
	} else {
		add("missing", "Not compared with what a publisher says: the digest is that of the bytes that came. Add the URL again with a checksum list.")
	}
	return list
}

// webLink returns u if browsers may open it, else "".
func webLink(u string) string {
	if s, _ := scheme.Of(u); s.Browsable {
		return u
	}
	return ""
}

// partitions returns the partitions of a disk, with a drawing to scale.
func partitions(in *disk.Inside) (list []templates.Partition) {
	const width, colors, least = 1000, 6, 4
	end := int64(1)
	for _, p := range in.Partitions {
		end = max(end, p.StartBytes+p.SizeBytes)
	}
	for i, p := range in.Partitions {
		if p.StartBytes < 0 || p.SizeBytes < 0 {
			continue
		}
		v := templates.Partition{
			Number: p.Number, Text: cmp.Or(p.Filesystem, "unknown"), Label: cmp.Or(p.FSLabel, p.Label), Start: sizeOf(p.StartBytes), Size: sizeOf(p.SizeBytes),
			X: int(float64(p.StartBytes) / float64(end) * width), Width: max(least, int(float64(p.SizeBytes)/float64(end)*width)), Color: i % colors,
		}
		list = append(list, v)
	}
	return list
}

func hostOf(location string) string {
	u, err := url.Parse(location)
	if err != nil || u.Host == "" {
		return location
	}
	return u.Hostname()
}

// plain matches the names that are the same in a shell and in a URL.
var plain = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._+-]*$`)

// flash returns the commands that write an image to a disk, or nil if its bytes are not
// here.
func (p *Pages) flash(r *http.Request, row *inventory.Row) *templates.Flash {
	if !row.Cached || row.SHA256 == nil || !row.Format.Image() {
		return nil
	}
	base, sha, name := p.baseURL(r), row.Digest(), row.Names[0]
	f := &templates.Flash{}
	if row.VirtualSizeBytes != nil {
		s := sizeOf(*row.VirtualSizeBytes)
		f.Disk = &s
	}
	add := func(title, text, note string) {
		f.Commands = append(f.Commands, templates.Command{Title: title, Text: text, Note: note, Open: len(f.Commands) == 0})
	}
	download := base + catalog.ImagePath(sha, name)
	raw := p.RawPath(row.Head)
	if raw == "" {
		return f
	}
	raw = base + raw
	word := string(sha) // a word of the shell that names the image
	if plain.MatchString(string(name)) {
		word = string(name)
	}
	add("From any Linux, verified", "curl -f "+base+"/flash.sh | sudo sh -s -- "+word+" /dev/sdX",
		"Asks first, refuses a disk in use, reads back what was written and compares it.")
	add("With the imageroot command", "imageroot --url "+base+" flash "+word+" /dev/sdX", "Resumes, and writes only what has data where the disk allows that.")
	add("With dd alone", "curl -f "+raw+" | sudo dd of=/dev/sdX bs=4M conv=fsync status=progress", "Nothing is verified but the length.")
	add("Over a slow network", "curl -f -H 'Accept-Encoding: zstd' "+raw+" | zstd -d | sudo dd of=/dev/sdX bs=4M conv=fsync", "")
	bmaptool := "sudo bmaptool copy "
	if digest := rawDigest(row); digest == "" {
		bmaptool += "--nobmap " // the block map has it
	} else {
		add("With Raspberry Pi Imager", "rpi-imager --cli --sha256 "+string(digest)+" "+raw+" /dev/sdX", "")
		f.Imager = template.URL("rpi-imager://open?repo=" + url.QueryEscape(base+"/os_list.json"))
	}
	if row.Known == nil || !catalog.UnpacksByName(row.Known, string(name)) {
		download = raw
	}
	verifies := "Verifies what it writes, and leaves out holes of the image."
	if row.Known != nil && row.Known.Bmap.Published() {
		verifies = "Verifies what it writes, and leaves out what the publisher's block map leaves out."
	}
	add("With bmaptool", bmaptool+download+" /dev/sdX", verifies)
	add("With qemu-img, for a virtual machine", "qemu-img convert -p -O qcow2 "+raw+" vm.qcow2", "")
	if p.NBDPort != 0 {
		host := hostOf(base)
		add("Over NBD", "nbdcopy nbd://"+host+":"+strconv.Itoa(p.NBDPort)+"/"+string(sha)+" /dev/sdX", "")
	}
	if row.Known != nil && row.Known.Boot != nil && row.Known.Boot.Any() {
		add("Boot it over the network, in iPXE", "chain "+base+"/boot/"+string(sha)+".ipxe", "")
	}
	return f
}

// baseURL returns the URL of this server for machines on its network.
func (p *Pages) baseURL(r *http.Request) string {
	base := web.BaseURL(r)
	u, err := url.Parse(base)
	if err != nil || p.Address == "" {
		return base
	}
	if a, err := netip.ParseAddr(u.Hostname()); u.Hostname() == "localhost" || err == nil && a.IsLoopback() {
		u.Host = p.Address
	}
	return u.String()
}

func rawDigest(row *inventory.Row) layout.SHA256 {
	if row.RawSHA256 == nil {
		return ""
	}
	return *row.RawSHA256
}
