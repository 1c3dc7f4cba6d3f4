package reader

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// TestMain runs the tests, or is a reader.
func TestMain(m *testing.M) {
	if len(os.Args) > 1 && os.Args[1] == Argument {
		if err := Main(os.Stdin, os.Stdout); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// trees makes two equal trees of small and large files.
func trees(t *testing.T) (got, want string) {
	t.Helper()
	got, want = t.TempDir(), t.TempDir()
	random := rand.New(rand.NewPCG(1, 1))
	for i, size := range []int{0, 1, 1000, 20_000, 300_000} {
		data := make([]byte, size)
		for i := range data {
			data[i] = byte(random.Uint32())
		}
		for _, dir := range []string{got, want} {
			if err := os.WriteFile(filepath.Join(dir, fmt.Sprint(i)), data, 0o600); err != nil {
				t.Fatal(err)
			}
		}
	}
	return got, want
}

// run reads at least so much, and no more.
func run(p Plan) Report {
	stop := make(chan struct{})
	close(stop)
	return Run(stop, p)
}

func TestEqual(t *testing.T) {
	got, want := trees(t)
	for _, habit := range Habits {
		r := run(Plan{Got: got, Want: want, Habit: habit, Seed: 1, Least: 100})
		if r.Failure != "" || r.Comparisons < 100 || r.Bytes == 0 {
			t.Errorf("%s: %+v", habit, r)
		}
	}
}

// TestDifferent wants whatever is wrong with a tree to be found by every habit,
// and to be said so that it can be drawn again.
func TestDifferent(t *testing.T) {
	for what, harm := range map[string]func(dir string) error{
		"want 0x": func(dir string) error { // another byte in each file, in the middle of what is read of it
			return each(dir, func(name string, data []byte) error {
				return os.WriteFile(name, bytes.Map(func(r rune) rune { return r + 1 }, bytes.Repeat([]byte{'a'}, len(data))), 0o600)
			})
		},
		"bytes, want": func(dir string) error {
			return each(dir, func(name string, data []byte) error { return os.Truncate(name, int64(len(data)/2)) })
		},
		"no such file": func(dir string) error {
			return each(dir, func(name string, _ []byte) error { return os.Remove(name) })
		},
	} {
		got, want := trees(t)
		if err := harm(got); err != nil {
			t.Fatal(err)
		}
		for _, habit := range Habits {
			r := run(Plan{Got: got, Want: want, Habit: habit, Seed: 7, Least: 1000})
			if !strings.Contains(r.Failure, what) || !strings.Contains(r.Failure, "seed 7") || !strings.Contains(r.Failure, string(habit)) {
				t.Errorf("%s, %q is wrong: %+v", habit, what, r)
			}
		}
	}
}

func each(dir string, harm func(name string, data []byte) error) error {
	list, err := filepath.Glob(filepath.Join(dir, "*"))
	for _, name := range list {
		data, rerr := os.ReadFile(name)
		if rerr != nil {
			return rerr
		}
		if err := harm(name, data); err != nil {
			return err
		}
	}
	return err
}

// TestFault wants a page that cannot be read to be an error.
func TestFault(t *testing.T) {
	got, want := trees(t)
	r := &reader{Plan: Plan{Got: got, Want: want}, names: []string{"4"}, random: rand.New(rand.NewPCG(1, 1))}
	p, err := r.open()
	if err != nil {
		t.Fatal(err)
	}
	defer p.close(false)
	if err := os.Truncate(filepath.Join(got, "4"), 0); err != nil {
		t.Fatal(err)
	}
	if err := r.mapped(p); err == nil || !strings.Contains(err.Error(), "fault") {
		t.Errorf("a page that is not there: %v", err)
	}
}

// TestProcess runs readers as processes: one that is told to stop, one that
// finds something, and one that hangs.
func TestProcess(t *testing.T) {
	start := func(p Plan) *Process {
		t.Helper()
		r, err := Start(exec.Command(os.Args[0], Argument), (*exec.Cmd).Start, p)
		if err != nil {
			t.Fatal(err)
		}
		return r
	}
	got, want := trees(t)
	plan := Plan{Got: got, Want: want, Habit: Jumping, Seed: 3, Least: 10}
	good := start(plan)
	if r, err := good.Stop(time.Minute); err != nil || r.Failure != "" || r.Comparisons < 10 {
		t.Errorf("%+v, %v", r, err)
	}

	plan.Got = filepath.Join(got, "nowhere")
	bad := start(plan)
	<-bad.Done()
	if r, err := bad.Stop(time.Minute); err != nil || !strings.Contains(r.Failure, "nowhere") {
		t.Errorf("%+v, %v", r, err)
	}

	plan.Got, plan.Least = got, 1<<40
	hanging := start(plan)
	if _, err := hanging.Stop(100 * time.Millisecond); err == nil || !strings.Contains(err.Error(), "hangs") {
		t.Errorf("one that does not end: %v", err)
	}
}
