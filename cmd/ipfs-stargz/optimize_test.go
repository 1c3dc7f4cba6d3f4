package main

import (
	"slices"
	"strings"
	"testing"
	"time"
)

// TestPushArguments parses push's command line, and pushes nothing.
func TestPushArguments(t *testing.T) {
	for line, want := range map[string]string{ // a part of the error, or "" for none
		"IMAGE":                         "",
		"--optimize IMAGE":              "",
		"--optimize IMAGE -- sh -c --x": "",
		"--optimize --optimize-timeout 2m IMAGE --": "",
		"":                                       "one argument, IMAGE",
		"IMAGE sh":                               "one argument, IMAGE",
		"--optimize IMAGE sh":                    "one argument, IMAGE",
		"--optimize -- sh":                       "one argument, IMAGE",
		"IMAGE -- sh":                            "only with --optimize",
		"--optimize --optimize-timeout 0s IMAGE": "--optimize-timeout",
		"--optimize --platform linux/arm64 IMAGE -- sh": "platform",
	} {
		cmd := pushCommand()
		err := cmd.ParseFlags(strings.Fields(line))
		if err == nil {
			err = cmd.ValidateFlagGroups()
		}
		if err == nil {
			err = cmd.ValidateArgs(cmd.Flags().Args())
		}
		if want == "" && err != nil || want != "" && (err == nil || !strings.Contains(err.Error(), want)) {
			t.Errorf("push %s: %v, want %q", line, err, want)
		}
	}
	f := runFlags{on: true, timeout: time.Minute}
	if o := f.optimize([]string{"sh", "-c"}); !slices.Equal(o.Command, []string{"sh", "-c"}) || o.Timeout != time.Minute || o.Output == nil {
		t.Errorf("%+v", o)
	}
	if o := new(runFlags).optimize(nil); o != nil {
		t.Errorf("without the flag: %+v", o)
	}
}
