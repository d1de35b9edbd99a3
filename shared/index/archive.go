package index

import (
	"encoding/binary"
	"sync"
)

// blockBytes is the size of a block before compression. Reading a record decompresses
// its block.
const blockBytes = 32 << 10

// An archive keeps the data of records compressed, several in a block. Nothing is ever
// removed: a block is collected when no datum refers to it any more.
type archive struct {
	codec *codec
	last  *block // is not full
	// bulk is set if nothing is read before finish. Then blocks are filled in the same
	// memory, one after another.
	bulk   bool
	spare  []byte
	packed []byte // memory to compress in
}

// A block has the data of several records.
type block struct {
	codec  *codec
	mu     sync.Mutex
	raw    []byte // nil once it is packed
	packed []byte
}

// A datum is the data of a record in an archive. The zero datum is empty.
type datum struct {
	block  *block
	offset uint32
}

// put adds data. Calls must not be concurrent.
func (a *archive) put(data string) datum {
	if data == "" {
		return datum{}
	}
	if a.last == nil {
		if a.spare == nil {
			a.spare = make([]byte, 0, blockBytes+blockBytes/4)
		}
		a.last, a.spare = &block{codec: a.codec, raw: a.spare}, nil
	}
	b := a.last
	b.mu.Lock()
	defer b.mu.Unlock()
	d := datum{b, uint32(len(b.raw))}
	b.raw = binary.AppendUvarint(b.raw, uint64(len(data)))
	b.raw = append(b.raw, data...)
	if len(b.raw) >= blockBytes {
		a.pack(b)
	}
	return d
}

// finish compresses the last block, which may not be full.
func (a *archive) finish() {
	if b := a.last; b != nil {
		b.mu.Lock()
		defer b.mu.Unlock()
		a.pack(b)
	}
}

func (a *archive) pack(b *block) {
	a.packed = a.codec.pack(b.raw, a.packed[:0])
	if a.bulk {
		a.spare = b.raw[:0]
	}
	b.packed, b.raw, a.last = append(make([]byte, 0, len(a.packed)), a.packed...), nil, nil
}

// A dataReader reads data one after another. It decompresses a block once for
// successive data in it.
type dataReader struct {
	block *block
	raw   []byte
}

// get returns the bytes of d, which are valid until the next call. It is safe for use
// while data are put.
func (r *dataReader) get(d datum) []byte {
	if d.block == nil {
		return nil
	}
	if r.block == d.block {
		return d.in(r.raw)
	}
	raw, packed := d.block.content()
	if raw == nil {
		r.raw = d.block.codec.unpack(packed, r.raw[:0])
		r.block, raw = d.block, r.raw
	}
	return d.in(raw)
}

// bytes returns the data. The caller must not change them. It keeps the blocks that were
// read last decompressed, but costs more than a dataReader if many data are read.
func (d datum) bytes() []byte {
	if d.block == nil {
		return nil
	}
	raw, packed := d.block.content()
	if raw != nil {
		return d.in(raw)
	}
	c := &d.block.codec.cache
	c.mu.Lock()
	defer c.mu.Unlock()
	for i, b := range c.blocks {
		if b == d.block {
			return d.in(c.raw[i])
		}
	}
	c.next = (c.next + 1) % len(c.blocks)
	c.blocks[c.next], c.raw[c.next] = d.block, d.block.codec.unpack(packed, nil)
	return d.in(c.raw[c.next])
}

// A cache has decompressed blocks.
type cache struct {
	mu     sync.Mutex
	blocks [8]*block
	raw    [8][]byte
	next   int
}

// content returns the raw bytes of a block, or the packed ones.
func (b *block) content() (raw, packed []byte) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.raw, b.packed
}

// in returns the bytes of d in the raw bytes of its block.
func (d datum) in(raw []byte) []byte {
	size, n := binary.Uvarint(raw[d.offset:])
	at := int(d.offset) + n
	return raw[at : at+int(size) : at+int(size)]
}
