package cache

import "iter"

// Layers tell what objects are for. They are asked in the background only.
type Layers interface {
	// Chunks returns what object k consists of; ok is false when it is of no
	// layer.
	Chunks(k Key) (chunks []Chunk, ok bool)
	// ByUse returns the layers in the order in which their objects are to go:
	// those that are not mounted, then those that are, and of either first the
	// one that was not used for longest.
	ByUse() []Layer
	// Forget has the file systems that find contents in the directory dir look
	// for them anew. An overlay remembers a file that it found once, and so keeps
	// one that was removed.
	Forget(dir string)
}

// Layer is the objects of one layer.
type Layer interface {
	// ID is another one for every other layer.
	ID() string
	// Mounted reports whether a container may read of the layer now.
	Mounted() bool
	// Has reports whether k is among its objects.
	Has(k Key) bool
	// Keys ranges over its objects, in any order. Nothing else is asked of the
	// same layer meanwhile.
	Keys() iter.Seq[Key]
}
