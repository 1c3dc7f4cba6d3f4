package buffer

import "testing"

// What is given back is lent again, and overwritten where that can be found
// out.
func TestPut(t *testing.T) {
	for _, n := range []int{0, 1, 100, 64 << 10, 2 << 20} {
		b := Get(n)
		if len(b) != n {
			t.Fatalf("%d bytes, want %d", len(b), n)
		}
		for i := range b {
			b[i] = 1
		}
		Put(b)
		if scribble && n > 0 && b[n-1] != 0 {
			t.Error("not overwritten")
		}
	}
	Put(nil)
	Put(make([]byte, 0, 777))
}
