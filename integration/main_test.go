package integration

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"testing"

	"github.com/ipfs-stargz/ipfs-stargz/integration/internal/stranger"
)

// TestMain runs the tests, or what a test starts this program as again, in a
// network namespace.
func TestMain(m *testing.M) {
	if len(os.Args) > 1 && os.Args[1] == stranger.Argument {
		if err := beStranger(); err != nil {
			fmt.Fprintln(os.Stderr, "stranger:", err)
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
