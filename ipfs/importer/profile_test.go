package importer

import (
	"testing"

	uio "github.com/ipfs/boxo/ipld/unixfs/io"
)

// TestProfileValues compares the profile with boxo's idea of it; a tree of more
// than one level would take a GiB to see that in a CID.
func TestProfileValues(t *testing.T) {
	p := uio.UnixFS_v1_2025
	if unixfs2025LeafSize != p.ChunkSize || unixfs2025Links != p.FileDAGWidth {
		t.Errorf("leaves of %d bytes, %d links; boxo has %d, %d", unixfs2025LeafSize, unixfs2025Links, p.ChunkSize, p.FileDAGWidth)
	}
}
