//go:build race

package buffer

// scribble has what is given back overwritten, so that who still uses it is
// found out.
const scribble = true
