package memstore_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"

	"imageroot/shared/store"
	"imageroot/shared/store/memstore"
)

func Example() {
	ctx := context.Background()
	root := memstore.New()
	v, err := root.Put(ctx, "disk.img", strings.NewReader("hello"), 5)
	if err != nil {
		fmt.Println(err)
		return
	}

	// With its ETag, a reader gets this version or an error.
	body, info, err := root.Get(ctx, "disk.img", store.Range{Offset: 1, Length: 4}, v.ETag)
	if err != nil {
		fmt.Println(err)
		return
	}
	defer body.Close()
	data, err := io.ReadAll(body)
	fmt.Printf("%s of %d bytes, %v\n", data, info.Size, err)

	if _, err := root.Put(ctx, "disk.img", strings.NewReader("other"), 5); err != nil {
		fmt.Println(err)
	}
	_, _, err = root.Get(ctx, "disk.img", store.All, v.ETag)
	fmt.Println(errors.Is(err, store.ErrChanged))
	// Output:
	// ello of 5 bytes, <nil>
	// true
}

// Of two writers that read the same record, one wins.
func Example_compareAndSwap() {
	ctx := context.Background()
	var records store.Records = memstore.New()
	tag, err := records.CreateRecord(ctx, "jobs/1", []byte(`{"owner": ""}`))
	if err != nil {
		fmt.Println(err)
		return
	}
	_, err = records.ReplaceRecord(ctx, "jobs/1", []byte(`{"owner": "a"}`), tag)
	fmt.Println("a:", err)
	_, err = records.ReplaceRecord(ctx, "jobs/1", []byte(`{"owner": "b"}`), tag)
	fmt.Println("b lost:", errors.Is(err, store.ErrConflict))
	data, _, err := records.ReadRecord(ctx, "jobs/1")
	fmt.Printf("%s %v\n", data, err)
	// Output:
	// a: <nil>
	// b lost: true
	// {"owner": "a"} <nil>
}
