package mounts

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// TestProbe checks what a probe finds when steps are refused, and that it
// leaves nothing.
func TestProbe(t *testing.T) {
	d := tempDir(t)
	for _, w := range ways {
		k, err := probe(t.Context(), d, refusing(w.refused...))
		if err != nil {
			t.Fatal(err)
		}
		if k.Trees != w.trees || k.Data != w.data || k.Plain != w.plain || !k.IDMapped {
			t.Errorf("without %q: %+v", w.refused, k)
		}
		var refused []string
		for _, r := range k.Refused {
			refused = append(refused, r.Step)
			if r.Why != errRefused.Error() {
				t.Errorf("%s: %s", r.Step, r.Why)
			}
		}
		slices.Sort(refused)
		if want := slices.Sorted(slices.Values(w.refused)); !slices.Equal(refused, want) {
			t.Errorf("refused: %q, want %q", refused, want)
		}
		b, err := json.Marshal(k)
		if err != nil || !strings.Contains(string(b), `"trees":"`+string(w.trees)) {
			t.Errorf("JSON: %s, %v", b, err)
		}
		if left, err := os.ReadDir(d); err != nil || len(left) > 0 {
			t.Errorf("left: %v, %v", left, err)
		}
		if m, l := below(t, d), loops(t, d); len(m)+len(l) > 0 {
			t.Errorf("left mounted: %q, %q", m, l)
		}
	}
	k, err := Probe(t.Context(), d)
	if err != nil || len(k.Refused) > 0 || k.Names != Separate {
		t.Errorf("this machine refuses %q, %v, and takes %q over names", k.Refused, err, k.Names)
	}
}

// TestProbeNames checks what a probe finds of overlays over names that no EROFS
// serves, whether there is EROFS or not.
func TestProbeNames(t *testing.T) {
	d := tempDir(t)
	var refused []string
	for _, want := range []OptionSet{Separate, SeparateMetacopy, OneString, ""} {
		k, err := probe(t.Context(), d, refusing(refused...))
		if err != nil || k.Names != want || k.Data != Separate {
			t.Errorf("without %q: %+v, %v", refused, k, err)
		}
		refused = append(refused, StepNames+"by "+string(want))
	}
	k, err := probe(t.Context(), d, refusing(fromFile, fromLoop))
	if err == nil || k.Names != Separate {
		t.Errorf("without EROFS: %+v, %v", k, err)
	}
}

// TestProbeImpossible checks that a kernel that can nothing is told of with all
// reasons, and what it can all the same.
func TestProbeImpossible(t *testing.T) {
	d := tempDir(t)
	for _, c := range []struct {
		steps []string
		plain OptionSet
	}{
		{[]string{fromFile, fromLoop}, Separate},
		{[]string{fromFile, fromLoop, StepPlain + string(Separate)}, OneString},
		{[]string{fromFile, fromLoop, StepPlain + string(Separate), StepPlain + string(OneString)}, ""},
	} {
		k, err := probe(t.Context(), d, refusing(c.steps...))
		if err == nil || k == nil || k.Plain != c.plain || k.Trees != "" || k.Data != "" || k.IDMapped {
			t.Fatalf("without %q: %+v, %v", c.steps, k, err)
		}
		for _, s := range c.steps {
			if !strings.Contains(err.Error(), s+": "+errRefused.Error()) {
				t.Errorf("error %q does not name %q", err, s)
			}
		}
		for _, err := range []error{k.MountTree(d, d), k.MountOverlay(d, Overlay{Lower: []string{d}, Data: []string{d}})} {
			if err == nil || !strings.Contains(err.Error(), "fs.mode") {
				t.Errorf("mounting all the same: %v", err)
			}
		}
	}
	k, err := probe(t.Context(), d, refusing("other owners of "+fromFile))
	if err != nil || k.IDMapped {
		t.Errorf("without mapped owners: %+v, %v", k, err)
	}
	if _, err := Probe(t.Context(), d+"/nothing"); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("a directory that is not there: %v", err)
	}
}

// TestProbeContext checks that a probe ends with its context, in the middle and
// while it waits for another.
func TestProbeContext(t *testing.T) {
	d := tempDir(t)
	ctx, cancel := context.WithCancel(t.Context())
	_, err := probe(ctx, d, func(string) error {
		cancel()
		return nil
	})
	if !errors.Is(err, context.Canceled) {
		t.Errorf("called off: %v", err)
	}
	unlock, err := lockProbes(t.Context(), d)
	must(t, err)
	defer unlock()
	if _, err := Probe(ctx, d); !errors.Is(err, context.Canceled) || !strings.Contains(err.Error(), d) {
		t.Errorf("another one at work: %v", err)
	}
}

// TestProbesAtOnce has several probes in one directory, whose process stays in
// its mount namespace.
func TestProbesAtOnce(t *testing.T) {
	d := tempDir(t)
	before, err := os.Readlink("/proc/self/ns/mnt")
	must(t, err)
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			if _, err := Probe(t.Context(), d); err != nil {
				t.Error(err)
			}
			if err := inOwnThread(func() error {
				if unix.Gettid() == unix.Getpid() {
					return errors.New("this is the process's first thread")
				}
				return nil
			}); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if after, err := os.Readlink("/proc/self/ns/mnt"); after != before || err != nil {
		t.Errorf("the process was in %s and is in %s (%v)", before, after, err)
	}
}

// probeChild is the variable that makes this program a probe in the directory
// that it names.
const probeChild = "MOUNTS_TEST_PROBE"

// probeUntilKilled says at its last step, with everything mounted, that it is
// there, and then waits for its end.
func probeUntilKilled(dir string) {
	refuse := refusing(fromFile)
	_, err := probe(context.Background(), dir, func(step string) error {
		if step == "other owners of "+fromLoop {
			fmt.Println("ready")
			_, _ = os.Stdin.Read(make([]byte, 1))
		}
		return refuse(step)
	})
	fmt.Println("it ended:", err)
}

// TestProbeKilled checks that a probe that is killed leaves no mounts and no
// loop devices, and that the next one removes its directory.
func TestProbeKilled(t *testing.T) {
	d := tempDir(t)
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, os.Args[0])
	cmd.Env = append(os.Environ(), probeChild+"="+d)
	cmd.Stderr, cmd.WaitDelay = os.Stderr, 10*time.Second
	_, err := cmd.StdinPipe()
	must(t, err)
	out, err := cmd.StdoutPipe()
	must(t, err, cmd.Start())
	line, err := bufio.NewReader(out).ReadString('\n')
	if err != nil || line != "ready\n" {
		t.Errorf("the probe says %q, %v", line, err)
	}
	if m, l := below(t, d), loops(t, d); len(m) > 0 || len(l) != 1 {
		t.Errorf("while it runs: mounts %q, loop devices %q", m, l)
	}
	must(t, cmd.Process.Kill())
	if err := cmd.Wait(); err == nil {
		t.Error("it was not killed")
	}
	waitNoLoops(t, d)
	if m := below(t, d); len(m) > 0 {
		t.Errorf("mounted: %q", m)
	}
	if left, err := os.ReadDir(d); err != nil || len(left) != 1 {
		t.Errorf("left: %v, %v", left, err)
	}
	_, err = Probe(t.Context(), d)
	must(t, err)
	if left, err := os.ReadDir(d); err != nil || len(left) > 0 {
		t.Errorf("left after the next: %v, %v", left, err)
	}
}

// waitNoLoops waits until the kernel has let go of the loop devices of files
// below dir, which it does some time after their last user is gone.
func waitNoLoops(t *testing.T, dir string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	for len(loops(t, dir)) > 0 {
		select {
		case <-ctx.Done():
			t.Fatalf("loop devices that nobody uses: %q", loops(t, dir))
		case <-time.After(time.Millisecond):
		}
	}
}

func TestChoose(t *testing.T) {
	can := &Kernel{Trees: FromFile, Data: Separate, Names: Separate, Plain: Separate}
	names := &Kernel{Names: Separate, Plain: Separate, Refused: []Refusal{{fromFile, "no such device"}}}
	cannot := &Kernel{Plain: OneString, Refused: []Refusal{{StepNames + "by lowerdir=", "no such option"}, {fromFile, "no such device"}}}
	nothing := &Kernel{Refused: []Refusal{{"overlay by lowerdir=", "no such device"}}}
	impossible, failed := errors.New("no EROFS here"), errors.New("permission denied")
	for _, c := range []struct {
		mode      string
		k         *Kernel
		err       error
		want, why string // why: of the choice or of the error
	}{
		{ModeAuto, can, nil, ModeKernel, "EROFS is mounted from a file, and overlayfs takes lowerdir+"},
		{ModeKernel, can, nil, ModeKernel, "from a file"},
		{ModeFUSE, can, nil, ModeFUSE, "the configuration asks for it; overlayfs finds contents by itself (lowerdir+)"},
		{ModeAuto, names, impossible, ModeFUSE, "no EROFS here; overlayfs finds contents by itself"},
		{ModeAuto, cannot, impossible, ModeFUSE, "no EROFS here; contents come by FUSE too: overlay over names by lowerdir=: no such option"},
		{ModeFUSE, cannot, impossible, ModeFUSE, "the configuration asks for it"},
		{ModeKernel, cannot, impossible, "", `no EROFS here (set fs.mode = "auto"`},
		{ModeAuto, nothing, impossible, "", "load the module overlay"},
		{ModeFUSE, nothing, impossible, "", "load the module overlay"},
		{ModeAuto, nil, failed, "", "permission denied"},
		{"fast", can, nil, "", `"fast" is none of auto, kernel, fuse`},
	} {
		got, err := Choose(c.mode, c.k, c.err)
		said := got.Why
		if err != nil {
			said = err.Error()
		}
		if (err == nil) != (c.want != "") || err == nil && got.Mode != c.want || !strings.Contains(said, c.why) || got.Kernel != c.k {
			t.Errorf("%s with %+v: %+v, %v", c.mode, c.k, got, err)
		}
	}
}
