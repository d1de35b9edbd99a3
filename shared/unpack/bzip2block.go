package unpack

// bzip2BlockBytes is the memory of a block.
const bzip2BlockBytes = 900_000 * (1 + 4)

// A bzip2Block is a block whose codes are read.
type bzip2Block struct {
	data    []byte // the output of the Burrows-Wheeler transform, then its input
	origin  int    // of the transform
	wantCRC uint32
	end     int64        // the offset of the input after the block
	done    <-chan error // receives the result of untransform
	links   []uint32     // a byte, and in the upper 24 bits the index of the next one
}

// untransform undoes the Burrows-Wheeler transform. Most of its time it waits for memory.
func (b *bzip2Block) untransform() error {
	data := b.data
	if len(b.links) < len(data) {
		b.links = make([]uint32, min(2*len(data), cap(data)))
	}
	links := b.links[:len(data)]
	var at [256]uint32
	for _, c := range data {
		at[c]++
	}
	sum := uint32(0)
	for c, n := range at {
		at[c] = sum
		sum += n
	}
	for i, c := range data {
		links[at[c]] = uint32(i)<<8 | uint32(c)
		at[c]++
	}
	next := uint32(b.origin)
	for i := range data {
		v := links[next]
		data[i] = byte(v)
		next = v >> 8
	}
	return nil
}
