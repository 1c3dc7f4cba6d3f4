package reader

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"time"
)

// Main is the program that Start starts: it takes the plan from in, stops when
// that ends, and writes the report to out.
func Main(in io.Reader, out io.Writer) error {
	d := json.NewDecoder(in)
	var p Plan
	if err := d.Decode(&p); err != nil {
		return err
	}
	stop := make(chan struct{})
	go func() {
		defer close(stop)
		_, _ = io.Copy(io.Discard, in)
	}()
	return json.NewEncoder(out).Encode(Run(stop, p))
}

// Process is a reader that runs.
type Process struct {
	plan  Plan
	stdin io.WriteCloser
	cmd   *exec.Cmd

	done   chan struct{}
	report Report
	err    error // after done: that there is no report
}

// Start starts a reader. cmd is a program that calls Main; start starts it, in
// its namespaces.
func Start(cmd *exec.Cmd, start func(*exec.Cmd) error, p Plan) (*Process, error) {
	r := &Process{plan: p, cmd: cmd, done: make(chan struct{})}
	var err error
	if r.stdin, err = cmd.StdinPipe(); err != nil {
		return nil, err
	}
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		return nil, errors.Join(err, r.stdin.Close())
	}
	cmd.Stderr = os.Stderr
	// A page that cannot be read is tried twice by the kernel, and from the start
	// again if a signal comes between. The runtime would send one every 10 ms to a
	// thread that waits for a page.
	cmd.Env = append(cmd.Environ(), "GODEBUG=asyncpreemptoff=1")
	if err := start(cmd); err != nil {
		return nil, fmt.Errorf("start a reader: %w", err)
	}
	go func() {
		defer close(r.done)
		err := json.NewDecoder(stdout).Decode(&r.report)
		r.err = errors.Join(err, cmd.Wait())
	}()
	if err := json.NewEncoder(r.stdin).Encode(p); err != nil {
		return nil, errors.Join(err, cmd.Process.Kill())
	}
	return r, nil
}

// Done is closed when the reader has ended: of itself if something is wrong.
func (r *Process) Done() <-chan struct{} { return r.done }

// Stop ends the reading and returns the report. A reader that does not end for
// so long hangs in a read, and is killed.
func (r *Process) Stop(patience time.Duration) (Report, error) {
	_ = r.stdin.Close() // again, or of one that has ended
	late := time.NewTimer(patience)
	defer late.Stop()
	select {
	case <-r.done:
	case <-late.C:
		err := r.cmd.Process.Kill()
		<-r.done
		return Report{}, errors.Join(fmt.Errorf("%s, seed %d: hangs: nothing was read to its end for %v", r.plan.Habit, r.plan.Seed, patience), err)
	}
	if r.err != nil {
		return Report{}, fmt.Errorf("%s, seed %d: %w", r.plan.Habit, r.plan.Seed, r.err)
	}
	return r.report, nil
}
