package manifest_test

import (
	"fmt"
	"os"
	"slices"

	"imageroot/shared/manifest"
)

func ExampleParse() {
	m, err := manifest.Parse([]byte(`version = 1

[[images]]
name = "debian-12.qcow2"
src = "https://example.org/debian-12.qcow2"
size_bytes = 1234
`))
	if err != nil {
		fmt.Println(err)
		return
	}
	for _, i := range m.Images {
		fmt.Println(i.Name, i.Format, *i.SizeBytes)
	}
	// Output: debian-12.qcow2 qcow2 1234
}

// All problems are reported at once, each with its line.
func ExampleParse_refused() {
	_, err := manifest.Parse([]byte(`version = 1

[[images]]
name = "debian-12.qcow2"
src = "https:///debian-12.qcow2"
size_bytes = "12"
`))
	fmt.Println(err)
	// Output:
	// line 5: images[0] "debian-12.qcow2": src names no host
	// line 6: images[0] "debian-12.qcow2": size_bytes must be a whole number, 0 or more
}

func ExampleEncode() {
	images := []manifest.Image{{Name: "x.img", Src: "https://example.org/x.img", Format: "img"}}
	fmt.Print(manifest.Encode(os.Stdout, slices.Values(images)))
	// Output:
	// version = 1
	//
	// [[images]]
	// name = 'x.img'
	// src = 'https://example.org/x.img'
	// format = 'img'
	// <nil>
}
