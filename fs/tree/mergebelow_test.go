package tree

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"
)

// Only whiteouts that can hide something are asked about, and only those that do
// stay.
func TestMergeOnSome(t *testing.T) {
	var asked []string
	root, err := merge(t, [][]file{
		{
			dir("a", 0o755), reg("a/.wh.x", ""), reg("a/.wh.y", ""), dir("a/b", 0o755), reg("a/b/.wh.x", ""),
			dir("o", 0o755), reg("o/.wh..wh..opq", ""), reg("o/.wh.x", ""), reg(".wh.x", ""), char("z", 0, 0), char("zero", 1, 5),
		},
		{dir("a", 0o755), reg("a/y", "")},
	}, Options{Below: func(p string) (bool, error) {
		asked = append(asked, p)
		return strings.HasPrefix(p, "a/"), nil
	}})
	if err != nil {
		t.Fatal(err)
	}
	const want = "a dir 755\na/b dir 755\na/b/x whiteout\na/x whiteout\na/y reg 644 size=0\no dir 755 opaque\nzero chr 600 dev=105"
	if got := list(root); got != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
	slices.Sort(asked)
	if got := strings.Join(asked, " "); got != "a/b/x a/x x z" {
		t.Errorf("asked about %s", got)
	}
	failed := errors.New("failed")
	_, err = Build(t.Context(), new(memory), layersOf([][]file{{reg(".wh.x", "")}}), Options{Below: func(string) (bool, error) { return false, failed }})
	if !errors.Is(err, failed) {
		t.Errorf("error %v, want %v", err, failed)
	}
}

// TestMergeCasesAsContainerd puts the cases of TestMerge before containerd: what
// is refused there must be refused here, and else each must look the same.
func TestMergeCasesAsContainerd(t *testing.T) {
	for _, c := range mergeCases {
		if c.below || c.err == errHost || strings.HasPrefix(c.name, "eStargz") {
			continue // these are ours alone
		}
		t.Run(c.name, func(t *testing.T) {
			d := tempDir(t)
			start := time.Now().Truncate(time.Second)
			var uppers []string
			for i, files := range c.stack {
				upper := fmt.Sprint(d, "/u", i)
				err := unpack(t, upper, uppers, files)
				if refused := c.err != nil && i == len(c.stack)-1; (err != nil) != refused {
					t.Fatalf("layer %d: containerd says %v, we say %v", i, err, c.err)
				}
				uppers = append([]string{upper}, uppers...)
			}
			if c.err != nil {
				return
			}
			writeObjects(t, d+"/e", nil)
			writeObjects(t, d+"/o", c.stack)
			mountOverlay(t, d+"/want", "lowerdir="+strings.Join(uppers, ":")+":"+d+"/e")
			if _, err := buildImage(t, d+"/image", layersOf(c.stack), Options{}); err != nil {
				t.Fatal(err)
			}
			mountImage(t, d+"/image", d+"/m")
			mountOverlay(t, d+"/got", "lowerdir="+d+"/m::"+d+"/o")
			compare(t, walk(t, d+"/want"), walk(t, d+"/got"), start, true)
		})
	}
}
