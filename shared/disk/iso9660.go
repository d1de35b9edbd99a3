package disk

import (
	"bytes"
	"strings"
	"unicode/utf16"
)

// An iso is an ISO 9660 file system (ECMA-119) with the names of Rock Ridge (IEEE P1282), or
// else those of Joliet.
type iso struct {
	span
	folder node
	joliet bool
	volume string
}

const (
	isoSector  = 2048
	isoFolder  = 0x02 // flags of a record
	isoPartial = 0x80 // more records of the file follow
)

func openISO(p span) (tree, error) {
	i := &iso{span: p}
	const first, most = 16, 32
	for n := int64(first); n < most; n++ {
		b, err := p.bytes(n*isoSector, isoSector)
		if err != nil {
			return nil, err
		}
		if string(b[1:6]) != "CD001" {
			break
		}
		const primary, supplementary, last = 1, 2, 255
		switch {
		case b[0] == last:
			n = most
		case b[0] == primary && i.volume == "":
			if le.Uint16(b[128:]) != isoSector {
				return nil, unsupported("its blocks are not of 2048 bytes")
			}
			i.folder = isoNode(b[156:190])
			i.volume = strings.TrimRight(string(b[40:72]), " \x00")
			if rock, err := i.rock(); err != nil || rock {
				return i, err
			}
		case b[0] == supplementary && bytes.HasPrefix(b[88:], []byte("%/")) && strings.ContainsRune("@CE", rune(b[90])):
			i.folder, i.joliet = isoNode(b[156:190]), true
			return i, nil
		}
	}
	if i.folder.kind != dir {
		return nil, errDamaged
	}
	return i, nil
}

// isoNode returns the node of a directory record.
func isoNode(r []byte) node {
	n := node{at: uint64(le.Uint32(r[2:])), size: int64(le.Uint32(r[10:]))}
	if be.Uint32(r[6:]) != le.Uint32(r[2:]) || be.Uint32(r[14:]) != le.Uint32(r[10:]) {
		n.kind = special // damaged
	} else if r[25]&isoFolder != 0 {
		n.kind = dir
	}
	return n
}

// rock reports whether the root directory has fields of SUSP, on which Rock Ridge is built.
func (i *iso) rock() (bool, error) {
	if i.folder.kind != dir {
		return false, errDamaged
	}
	b, err := i.upTo(int64(i.folder.at)*isoSector, isoSector)
	if err != nil || len(b) < 34 || int(b[0]) > len(b) || b[0] < 34 {
		return false, err
	}
	return bytes.HasPrefix(b[34:b[0]], []byte("SP\x07\x01\xbe\xef")), nil
}

func (i *iso) root() (node, error) { return i.folder, nil }

// content returns the bytes of a file.
func (i *iso) content(n node) span { return i.sub(int64(n.at)*isoSector, n.size) }

func (i *iso) read(n node, limit int) ([]byte, error) {
	if n.kind == link {
		return nil, unsupported("it has symbolic links, which are not read")
	}
	return i.bytes(int64(n.at)*isoSector, int(min(int64(limit), n.size)))
}

func (i *iso) lookup(d node, name string) (node, error) {
	if d.size > maxFolder {
		return node{}, errTooLarge
	}
	for off := int64(0); off < d.size; off += isoSector {
		b, err := i.bytes(int64(d.at)*isoSector+off, isoSector)
		if err != nil {
			return node{}, err
		}
		for len(b) > 0 && b[0] != 0 {
			n := int(b[0])
			if n < 34 || n > len(b) || 33+int(b[32]) > n {
				return node{}, errDamaged
			}
			r := b[:n]
			b = b[n:]
			if !i.named(r, name) {
				continue
			}
			found := isoNode(r)
			switch {
			case found.kind == special:
				return node{}, errDamaged
			case isoLink(r):
				found.kind = link
			case r[25]&isoPartial != 0:
				return i.join(found, b, r[33:33+r[32]])
			}
			return found, nil
		}
	}
	return node{}, errMissing
}

// join returns the node of a file in several records, if they follow each other on the disk.
func (i *iso) join(n node, records, identifier []byte) (node, error) {
	for len(records) > 0 {
		size := int(records[0])
		if size < 34 || size > len(records) || 33+int(records[32]) > size || !bytes.Equal(records[33:33+records[32]], identifier) {
			break
		}
		next := isoNode(records)
		if int64(next.at) != int64(n.at)+n.size/isoSector || n.size%isoSector != 0 {
			break
		}
		n.size += next.size
		if records[25]&isoPartial == 0 {
			return n, nil
		}
		records = records[size:]
	}
	return node{}, unsupported("it has a file in pieces, which is not read")
}

// named reports whether a directory record has a name. Names of ISO 9660 itself are in upper
// case, and may have a version.
func (i *iso) named(r []byte, name string) bool {
	identifier := r[33 : 33+r[32]]
	if i.joliet {
		units := make([]uint16, len(identifier)/2)
		for j := range units {
			units[j] = be.Uint16(identifier[2*j:])
		}
		return strings.TrimSuffix(string(utf16.Decode(units)), ";1") == name
	}
	if rock, ok := rockName(r); ok {
		return rock == name
	}
	return strings.EqualFold(strings.TrimSuffix(strings.TrimSuffix(string(identifier), ";1"), "."), name)
}

// isoFields yields the fields of SUSP of a directory record: their signature and their data.
func isoFields(r []byte, yield func(signature string, data []byte)) {
	start := 33 + int(r[32])
	start += 1 - int(r[32])%2 // to an even offset
	for start+4 <= len(r) {
		n := int(r[start+2])
		if n < 4 || start+n > len(r) {
			return
		}
		yield(string(r[start:start+2]), r[start+4:start+n])
		start += n
	}
}

// rockName returns the name of Rock Ridge. The part of a name that is in another sector is
// left out, so no path that an inspection looks for may be that long.
func rockName(r []byte) (name string, ok bool) {
	isoFields(r, func(signature string, data []byte) {
		if signature == "NM" && len(data) > 0 {
			name += string(data[1:])
			ok = true
		}
	})
	return name, ok
}

// isoLink reports whether a record is of a symbolic link of Rock Ridge.
func isoLink(r []byte) (is bool) {
	isoFields(r, func(signature string, _ []byte) { is = is || signature == "SL" })
	return is
}
