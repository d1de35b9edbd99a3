package guest_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"

	"imageroot/shared/guest"
)

// small returns a qcow2 file of a disk of 1 MiB to which one cluster was written.
func small() []byte {
	const cluster = 64 << 10
	file := make([]byte, 5*cluster)
	copy(file, "QFI\xfb")
	binary.BigEndian.PutUint32(file[4:], 3)          // version
	binary.BigEndian.PutUint32(file[20:], 16)        // a cluster has 2^16 bytes
	binary.BigEndian.PutUint64(file[24:], 1<<20)     // the disk
	binary.BigEndian.PutUint32(file[36:], 1)         // entries of the L1 table
	binary.BigEndian.PutUint64(file[40:], 1*cluster) // the L1 table
	binary.BigEndian.PutUint64(file[48:], 4*cluster) // the table of reference counts
	binary.BigEndian.PutUint32(file[56:], 1)         // clusters of it
	binary.BigEndian.PutUint32(file[96:], 4)         // a reference count has 2^4 bits
	binary.BigEndian.PutUint32(file[100:], 104)      // the header
	binary.BigEndian.PutUint64(file[1*cluster:], 2*cluster)
	binary.BigEndian.PutUint64(file[2*cluster+8:], 3*cluster) // the second cluster of the disk
	copy(file[3*cluster:], "hello")
	return file
}

func ExampleOpen() {
	file := small()
	disk, err := guest.Open(guest.QCOW2, bytes.NewReader(file), int64(len(file)))
	if err != nil {
		fmt.Println(err)
		return
	}
	fmt.Println(disk.Size(), "bytes")

	zeros, _ := disk.Zeros(0)
	fmt.Println(zeros, "zeros in front, which need not be read")

	hello := make([]byte, 5)
	if _, err := disk.ReadAt(hello, zeros); err != nil {
		fmt.Println(err)
		return
	}
	fmt.Printf("%s\n", hello)

	// All of it, in order.
	n, err := io.Copy(io.Discard, io.NewSectionReader(disk, 0, disk.Size()))
	fmt.Println(n, err)
	// Output:
	// 1048576 bytes
	// 65536 zeros in front, which need not be read
	// hello
	// 1048576 <nil>
}

// A file that was cut short opens if its tables are whole. Check finds
// what is missing without reading the data.
func ExampleImage_Check() {
	file := small()[:3<<16]
	disk, err := guest.Open(guest.QCOW2, bytes.NewReader(file), int64(len(file)))
	if err != nil {
		fmt.Println(err)
		return
	}
	err = disk.Check()
	fmt.Println(errors.Is(err, guest.ErrTruncated))
	fmt.Println(err)
	// Output:
	// true
	// the qcow2 image is cut short: byte 65536 of the disk is at byte 196608 of a file of 196608
}
