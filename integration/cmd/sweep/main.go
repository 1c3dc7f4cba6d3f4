// Command sweep takes away what broken runs of the tests or the demo have left:
// processes, mounts, control groups and files of the beds recorded in a folder.
package main

import (
	"fmt"
	"os"

	"github.com/ipfs-stargz/ipfs-stargz/integration/internal/testbed"
)

func main() {
	if len(os.Args) != 2 {
		fmt.Fprintln(os.Stderr, "usage: sweep FOLDER")
		os.Exit(2)
	}
	took, err := testbed.Sweep(os.Args[1])
	for _, t := range took {
		fmt.Println("taken away:", t)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "sweep:", err)
		os.Exit(1)
	}
}
