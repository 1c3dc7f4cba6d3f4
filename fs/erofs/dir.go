package erofs

import "encoding/binary"

// Dirent is a name in a directory.
type Dirent struct {
	Name string
	Nid  uint64
	Type uint8 // see [TypeOf]
	// Next is where a listing goes on behind this entry, for [Image.Dirents].
	// Writers leave it alone.
	Next int64
}

// dirBlock returns how many of the n entries from the given one on fit in one
// block, and the bytes they take there.
func dirBlock(from, n int, entry func(i int) Dirent) (count, size int) {
	for i := from; i < n; i++ {
		add := direntSize + len(entry(i).Name)
		if size+add > BlockSize {
			break
		}
		count, size = count+1, size+add
	}
	return count, size
}

// DirSize returns the bytes of the data of a directory of n entries: full blocks,
// and a last one of what it needs.
func DirSize(n int, entry func(i int) Dirent) int64 {
	var total int64
	for i := 0; ; {
		count, size := dirBlock(i, n, entry)
		if i += count; i >= n {
			return total + int64(size)
		}
		total += BlockSize
	}
}

// AppendDir appends the data of a directory of n entries, which are in byte order
// of their names, "." and ".." among them.
func AppendDir(b []byte, n int, entry func(i int) Dirent) []byte {
	for i := 0; i < n; {
		count, size := dirBlock(i, n, entry)
		nameOff := count * direntSize
		for j := i; j < i+count; j++ {
			e := entry(j)
			b = binary.LittleEndian.AppendUint64(b, e.Nid)
			b = binary.LittleEndian.AppendUint16(b, uint16(nameOff))
			b = append(b, e.Type, 0)
			nameOff += len(e.Name)
		}
		for j := i; j < i+count; j++ {
			b = append(b, entry(j).Name...)
		}
		if i += count; i < n {
			b = append(b, zeros[:BlockSize-size]...)
		}
	}
	return b
}
