package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/hanwen/go-fuse/v2/fs"
	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
)

// loopbackArgument is the first argument of this program where it serves
// go-fuse's loopback file system: in a process of its own, as a daemon is.
const loopbackArgument = "loopback"

const loopbackReady = "ready"

// serveLoopback serves a directory at another one until its input ends, as
// go-fuse's own example does.
func serveLoopback(args []string) error {
	if len(args) != 2 {
		return fmt.Errorf("loopback: %d arguments, want a directory and where to mount it", len(args))
	}
	loop, err := fs.NewLoopbackRoot(args[0])
	if err != nil {
		return err
	}
	second := time.Second
	server, err := fs.Mount(args[1], loop, &fs.Options{
		AttrTimeout: &second, EntryTimeout: &second, NullPermissions: true,
		MountOptions: fuse.MountOptions{
			AllowOther: true, DirectMountStrict: true, FsName: args[0], Name: "loopback",
			Options: []string{"default_permissions"},
		},
	})
	if err != nil {
		return fmt.Errorf("loopback at %s: %w", args[1], err)
	}
	fmt.Println(loopbackReady)
	_, err = io.Copy(io.Discard, os.Stdin)
	err = errors.Join(err, unix.Unmount(args[1], unix.MNT_DETACH))
	server.Wait()
	return err
}

// loopback serves dir by go-fuse's loopback file system, and gives the root of
// an overlay over it. Both end with the scenario.
func (b *bench) loopback(ctx context.Context, dir string) (string, error) {
	base := filepath.Join(b.node.Dir, "loopback")
	at := func(name string) string { return filepath.Join(base, name) }
	for _, name := range []string{"fuse", "upper", "work", "root"} {
		if err := os.MkdirAll(at(name), 0o755); err != nil {
			return "", err
		}
	}
	if err := b.startLoopback(ctx, dir, at("fuse")); err != nil {
		return "", err
	}
	options := fmt.Sprintf("lowerdir=%s,upperdir=%s,workdir=%s", at("fuse"), at("upper"), at("work"))
	if err := unix.Mount("overlay", at("root"), "overlay", 0, options); err != nil {
		return "", fmt.Errorf("overlay over go-fuse's loopback: %w", err)
	}
	b.ends = append(b.ends, func() error { return unix.Unmount(at("root"), unix.MNT_DETACH) })
	return at("root"), nil
}

func (b *bench) startLoopback(ctx context.Context, dir, at string) error {
	self, err := os.Executable()
	if err != nil {
		return err
	}
	// It is ended by us, in order, and not by whoever ends ctx.
	cmd := b.node.Command(context.WithoutCancel(ctx), self, loopbackArgument, dir, at)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Stderr = os.Stderr
	in, err := cmd.StdinPipe()
	if err != nil {
		return err
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		return err
	}
	if err := cmd.Start(); err != nil {
		return err
	}
	b.ends = append(b.ends, func() error { return errors.Join(in.Close(), cmd.Wait()) })
	line, err := bufio.NewReader(out).ReadString('\n')
	if strings.TrimSpace(line) != loopbackReady {
		return fmt.Errorf("go-fuse's loopback is not ready: it said %q: %w", line, err)
	}
	return nil
}
