//go:build !race

package buffer

const scribble = false
