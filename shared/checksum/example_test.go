package checksum_test

import (
	"fmt"
	"strings"

	"imageroot/shared/checksum"
)

func Example() {
	const sums = `# images of 2026-11-28
2cf24dba5fb0a30e26e83b2ac5b9e29e1b161e5c1fa7425e73043362938b9824  disk.img
SHA256 (netboot/mini.iso) = 486ea46224d1bb4fb680f34f7c9ad96a8f24ec88be73ea8e5a6c65260e9cb8a7
`
	list, err := checksum.Parse(strings.NewReader(sums), "images.example/v1/SHA256SUMS")
	if err != nil {
		fmt.Println(err)
		return
	}
	for _, file := range []string{"images.example/v1/netboot/mini.iso", "images.example/v1/mini.iso"} {
		sum, err := list.Find(file)
		fmt.Println(sum.Algorithm, sum.Hex, err)
	}
	// Output:
	// sha256 486ea46224d1bb4fb680f34f7c9ad96a8f24ec88be73ea8e5a6c65260e9cb8a7 <nil>
	//   the checksum list does not name "mini.iso"; it lists "disk.img", "netboot/mini.iso"
}

// A list may hold the digest of one file only, without a name.
func ExampleList_Find() {
	list, err := checksum.Parse(strings.NewReader("2CF24DBA5FB0A30E26E83B2AC5B9E29E1B161E5C1FA7425E73043362938B9824\n"), "images.example/disk.img.sha256")
	if err != nil {
		fmt.Println(err)
		return
	}
	sum, err := list.Find("images.example/disk.img")
	fmt.Println(sum.Algorithm, sum.Hex, err)
	// Output: sha256 2cf24dba5fb0a30e26e83b2ac5b9e29e1b161e5c1fa7425e73043362938b9824 <nil>
}

func ExampleParse_weak() {
	_, err := checksum.Parse(strings.NewReader("5d41402abc4b2a76b9719d911017c592  disk.img\n"), "images.example/MD5SUMS")
	fmt.Println(err)
	// Output: the checksum list has only digests that are too weak or not known; it needs SHA-256 or SHA-512
}
