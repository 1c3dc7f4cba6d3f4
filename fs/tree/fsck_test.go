package tree

import (
	"os/exec"
	"testing"
)

// fsck has erofs-utils check an image. It wants stack for deep directories.
func fsck(t testing.TB, image string) {
	t.Helper()
	tool, err := exec.LookPath("fsck.erofs")
	if err != nil {
		t.Fatalf("%v: install erofs-utils (make test does)", err)
	}
	out, err := exec.Command("sh", "-c", `ulimit -s unlimited && exec "$0" "$1"`, tool, image).CombinedOutput()
	if err != nil || len(out) > 0 && string(out) != "No errors found\n" {
		t.Errorf("fsck.erofs: %v\n%s", err, out)
	}
}
