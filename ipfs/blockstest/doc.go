// Package blockstest holds what tests of [ipfs.Blocks] and of its users need:
// the conformance suite that every implementation passes ([Run]), and an
// implementation in memory ([Memory]) that passes it as well.
package blockstest
