package index

import "imageroot/shared/store"

// Text registers records whose values are their bytes.
func Text[ID ~string](ix *Index, prefix string, id func(key store.Key) (ID, bool)) *Section[ID, string] {
	return Decoded(ix, prefix, id, func(_ store.Key, data []byte) (string, error) { return string(data), nil })
}

// Decoded registers records with their decoder.
func Decoded[ID ~string, T any](ix *Index, prefix string, id func(key store.Key) (ID, bool), decode func(key store.Key, data []byte) (T, error)) *Section[ID, T] {
	return register(ix, section{root: catalogRoot, prefix: prefix, records: true}, id, decode)
}
