package integration

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"testing"

	"github.com/ipfs-stargz/ipfs-stargz/integration/internal/reader"
	"github.com/ipfs-stargz/ipfs-stargz/integration/internal/stranger"
)

// TestMain runs the tests, or what a test starts this program as again.
func TestMain(m *testing.M) {
	programs := map[string]func() error{
		stranger.Argument: beStranger,
		reader.Argument:   func() error { return reader.Main(os.Stdin, os.Stdout) },
	}
	if len(os.Args) > 1 && programs[os.Args[1]] != nil {
		if err := programs[os.Args[1]](); err != nil {
			fmt.Fprintf(os.Stderr, "%s: %v\n", os.Args[1], err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// beStranger reads the plan from standard input and writes the report.
func beStranger() error {
	var plan stranger.Plan
	if err := json.NewDecoder(os.Stdin).Decode(&plan); err != nil {
		return err
	}
	report, err := stranger.Run(context.Background(), plan)
	if err != nil {
		return err
	}
	return json.NewEncoder(os.Stdout).Encode(report)
}
