package testbed

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Sweep takes away what broken runs have left: records is the folder of the
// records of beds. A bed that is in use is a broken one to it.
func Sweep(records string) (took []string, err error) {
	list, err := os.ReadDir(records)
	if err != nil {
		return nil, err
	}
	var errs []error
	for _, e := range list {
		record := filepath.Join(records, e.Name())
		dir, err := os.Readlink(record)
		// Only what a bed can be called: the folder is removed below.
		if err != nil || filepath.Base(dir) != e.Name() || !strings.HasPrefix(e.Name(), "ist-") {
			errs = append(errs, fmt.Errorf("%s is no record of a testbed: %w", record, err))
			continue
		}
		left, err := sweep(dir)
		took = append(took, left...)
		if err == nil {
			err = os.Remove(record)
			took = append(took, dir)
		}
		errs = append(errs, err)
	}
	return took, errors.Join(errs...)
}

// sweep ends the processes of the bed in dir, takes away its mounts, control
// groups and files, and says what processes and mounts there were.
func sweep(dir string) (took []string, err error) {
	for range 3 { // a process may have started another meanwhile
		processes := bedProcesses(dir)
		if len(processes) == 0 {
			break
		}
		for _, pid := range processes {
			took = append(took, fmt.Sprintf("process %d %s", pid, commandLine(pid)))
			if err := syscall.Kill(pid, syscall.SIGKILL); err != nil && !errors.Is(err, syscall.ESRCH) {
				return took, fmt.Errorf("process %d: %w", pid, err)
			}
		}
		for _, pid := range processes {
			waitGone(pid)
		}
	}
	mounts, err := Mounts()
	if err != nil {
		return took, err
	}
	var errs []error
	slices.Reverse(mounts)
	for _, m := range mounts {
		if m.of(dir) {
			took = append(took, "mount "+m.String())
			if err := unix.Unmount(m.Point, unix.MNT_DETACH); err != nil {
				errs = append(errs, fmt.Errorf("unmounting %s: %w", m.Point, err))
			}
		}
	}
	if len(errs) > 0 {
		// What is still mounted must not be removed through the mount.
		return took, errors.Join(errs...)
	}
	errs = append(errs, removeGroups(filepath.Base(dir)), removeRuncState(filepath.Base(dir)), os.RemoveAll(dir))
	return took, errors.Join(errs...)
}

// bedProcesses finds the processes that carry the bed's mark, or whose root is
// one of its mounts, and all that they started.
func bedProcesses(dir string) []int {
	own, _ := os.Readlink("/proc/self/ns/mnt")
	mark := markVariable + "=" + dir
	parents := map[int]int{}
	found := map[int]bool{}
	list, _ := filepath.Glob("/proc/[0-9]*")
	for _, proc := range list {
		pid, err := strconv.Atoi(filepath.Base(proc))
		if err != nil || pid == os.Getpid() {
			continue
		}
		if stat, err := os.ReadFile(proc + "/stat"); err == nil {
			// The name, in parentheses, may hold anything.
			rest := strings.Fields(string(stat[strings.LastIndexByte(string(stat), ')')+1:]))
			if rest[0] == "Z" {
				continue
			}
			parents[pid], _ = strconv.Atoi(rest[1])
		}
		environ, _ := os.ReadFile(proc + "/environ")
		if slices.Contains(strings.Split(string(environ), "\x00"), mark) {
			found[pid] = true
			continue
		}
		if ns, err := os.Readlink(proc + "/ns/mnt"); err == nil && ns != own && rootIn(proc, dir) {
			found[pid] = true
		}
	}
	var pids []int
	for pid := range parents {
		for p := pid; p > 1; p = parents[p] {
			if found[p] {
				pids = append(pids, pid)
				break
			}
		}
	}
	slices.Sort(pids)
	return pids
}

// rootIn says whether a process' root is a mount made of folders in dir, as
// a container's is.
func rootIn(proc, dir string) bool {
	info, err := os.ReadFile(proc + "/mountinfo")
	if err != nil {
		return false
	}
	for line := range strings.Lines(string(info)) {
		if f := strings.Fields(line); len(f) > 4 && f[4] == "/" && strings.Contains(line, dir+"/") {
			return true
		}
	}
	return false
}

func commandLine(pid int) string {
	b, _ := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
	return strings.TrimSpace(strings.ReplaceAll(string(b), "\x00", " "))
}

// waitGone waits until a killed process has ended, or is another's zombie.
func waitGone(pid int) {
	for deadline := time.Now().Add(10 * time.Second); time.Now().Before(deadline); time.Sleep(10 * time.Millisecond) {
		stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
		if err != nil || strings.Contains(string(stat), ") Z ") {
			return
		}
	}
}

// removeGroups removes the empty control groups of the bed's containerd
// namespaces, in all hierarchies.
func removeGroups(id string) error {
	var groups []string
	for _, pattern := range []string{"/sys/fs/cgroup/" + id + "-*", "/sys/fs/cgroup/*/" + id + "-*"} {
		list, err := filepath.Glob(pattern)
		if err != nil {
			return err
		}
		groups = append(groups, list...)
	}
	var errs []error
	for _, g := range groups {
		var inner []string
		err := filepath.WalkDir(g, func(path string, d fs.DirEntry, err error) error {
			if err == nil && d.IsDir() {
				inner = append(inner, path)
			}
			return err
		})
		errs = append(errs, err)
		for _, path := range slices.Backward(inner) {
			errs = append(errs, unix.Rmdir(path))
		}
	}
	return errors.Join(errs...)
}

// removeRuncState removes what runc keeps of the bed's containers.
func removeRuncState(id string) error {
	list, err := filepath.Glob("/run/containerd/runc/" + id + "-*")
	if err != nil {
		return err
	}
	var errs []error
	for _, dir := range list {
		errs = append(errs, os.RemoveAll(dir))
	}
	return errors.Join(errs...)
}
