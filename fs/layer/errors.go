package layer

import "errors"

// ErrChunkDigest says that a chunk's bytes are not those that the table of
// contents names.
var ErrChunkDigest = errors.New("wrong chunk digest")
