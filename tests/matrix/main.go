// Copyright The crd-ipam Authors.
// SPDX-License-Identifier: Apache-2.0

// matrix runs the end-to-end tests of each cell of the matrix on a cluster of its own, one
// after the other, and writes what came out into docs/compatibility-matrix.md. make
// e2e-matrix runs it, as root.
package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"maps"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/crd-ipam/crd-ipam/tests/internal/matrix"
	"github.com/crd-ipam/crd-ipam/tests/internal/testenv"
)

func main() {
	slice := flag.Int("slice", -1, "only the cell whose number this is, counted on from the first one after the last; with -built, of those")
	built := flag.Bool("built", false, "leave out cells whose Kubernetes would have to be built first, which takes up to an hour")
	write := flag.Bool("write", false, "write the lines of the cells that ran into docs/compatibility-matrix.md")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := run(ctx, *slice, *built, *write)
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "FAIL:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, slice int, built, write bool) error {
	root, err := testenv.Root()
	if err != nil {
		return err
	}
	var results []*result
	var errs []error
	start := time.Now()
	var numbers []int
	for i, c := range matrix.Cells {
		if !built || isBuilt(ctx, root, c) {
			numbers = append(numbers, i)
		}
	}
	if len(numbers) == 0 {
		return errors.New("no cell's Kubernetes has been built: leave out -built")
	}
	if slice >= 0 {
		n := slice % len(numbers)
		numbers = numbers[n : n+1]
	}
	for _, i := range numbers {
		c := matrix.Cells[i]
		fmt.Printf("matrix: cell %d: Kubernetes %s, %s, %s, %v\n", i, c.Kubernetes, c.Containerd, c.Multus, c.Networks)
		r, err := try(ctx, root, i, c)
		if err != nil {
			errs = append(errs, fmt.Errorf("cell %d: %w", i, err))
		}
		results = append(results, r)
		if ctx.Err() != nil {
			return ctx.Err()
		}
	}
	lines := map[string]string{}
	for _, r := range results {
		maps.Copy(lines, r.lines())
	}
	for _, key := range slices.Sorted(maps.Keys(lines)) {
		fmt.Println(key + lines[key])
	}
	fmt.Printf("matrix: %d cells in %.0f s\n", len(results), time.Since(start).Seconds())
	if write {
		errs = append(errs, replace(filepath.Join(root, "docs", "compatibility-matrix.md"), lines))
	}
	return errors.Join(errs...)
}

// result of a cell: what became of its tests and what they noted, by their names.
type result struct {
	matrix.Cell
	outcomes map[string]string
	attrs    map[string]map[string]string
}

// try runs a cell's tests.
func try(ctx context.Context, root string, i int, c matrix.Cell) (*result, error) {
	r := &result{c, map[string]string{}, map[string]map[string]string{}}
	path, err := parts(ctx, root, c)
	if err != nil {
		return r, err
	}
	cmd := exec.CommandContext(ctx, "go", "test", "-json", "./e2e", "-count=1", "-timeout=20m", "-run", "^(TestWalkthrough|TestCell)$")
	cmd.Dir = filepath.Join(root, "tests")
	cmd.Cancel = func() error { return cmd.Process.Signal(os.Interrupt) }
	cmd.Env = append(os.Environ(), "E2E_CELL="+strconv.Itoa(i), "CLUSTER_PATH="+path)
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		return r, err
	}
	if err := cmd.Start(); err != nil {
		return r, err
	}
	return r, errors.Join(r.read(out), cmd.Wait())
}

// kubernetes are the parts that are of a cell's Kubernetes.
var kubernetes = []string{"kube-apiserver", "kube-controller-manager", "kube-scheduler", "kubectl", "kubelet"}

// isBuilt reports whether a cell's Kubernetes is there.
func isBuilt(ctx context.Context, root string, c matrix.Cell) bool {
	cmd := exec.CommandContext(ctx, filepath.Join(root, "hack", "parts.sh"), append([]string{"-n"}, kubernetes...)...)
	cmd.Env = append(os.Environ(), "KUBE="+c.Kubernetes)
	return cmd.Run() == nil
}

// parts builds what the cell's cluster is made of, and returns its directories.
func parts(ctx context.Context, root string, c matrix.Cell) (string, error) {
	cmd := exec.CommandContext(ctx, filepath.Join(root, "hack", "parts.sh"), append(kubernetes, "etcd", "cni", "network-operator", "pause", "debian", c.Containerd, c.Multus)...)
	cmd.Env = append(os.Environ(), "KUBE="+c.Kubernetes)
	cmd.Stderr = os.Stderr
	out, err := cmd.Output()
	return strings.Join(strings.Fields(string(out)), ":"), err
}

// read reads what go test -json says, and passes on what tests print.
func (r *result) read(from io.Reader) error {
	lines := bufio.NewScanner(from)
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		var event struct{ Action, Test, Output, Key, Value string }
		if err := json.Unmarshal(lines.Bytes(), &event); err != nil {
			return fmt.Errorf("go test says %q: %w", lines.Text(), err)
		}
		switch event.Action {
		case "output", "build-output":
			fmt.Print(event.Output)
		case "attr":
			if r.attrs[event.Test] == nil {
				r.attrs[event.Test] = map[string]string{}
			}
			r.attrs[event.Test][event.Key] = event.Value
		case "pass", "fail", "skip":
			r.outcomes[event.Test] = event.Action
		}
	}
	return lines.Err()
}

// key begins the line of a network.
func key(c matrix.Cell, n matrix.Network) string {
	return fmt.Sprintf("| %s | %s | %s | %s | %s |", c.Kubernetes,
		map[string]string{matrix.Containerd2: "2.4", matrix.ContainerdDebian: "1.6 (Debian)"}[c.Containerd],
		map[string]string{matrix.Thin: "thin", matrix.Thick: "thick"}[c.Multus], n.Family, n.CNIVersion)
}

// lines are what the table has after the keys.
func (r *result) lines() map[string]string {
	out := map[string]string{}
	for _, n := range r.Networks {
		step := func(name string) string { return "TestCell/" + name + "/" + n.Name() }
		seen := r.attrs[step("observed")]
		out[key(r.Cell, n)] = fmt.Sprintf(" %s |", strings.Join([]string{
			r.outcome("TestWalkthrough"), r.outcome(step("static")), r.outcome(step("StatefulSet")), r.outcome(step("reboot")), r.outcome(step("GC")),
			seen["calls"], seen["K8S_POD_UID"], seen["prevResult"],
		}, " | "))
	}
	return out
}

func (r *result) outcome(test string) string {
	switch r.outcomes[test] {
	case "pass":
		return "✓"
	case "skip":
		return "–"
	case "":
		return "not run"
	}
	return "**fails**"
}

const header = `| Kubernetes | containerd | multus | addresses | cniVersion | walkthrough | requested address | StatefulSet | reboot | GC | IPAM plugin called with | K8S_POD_UID in | prevResult in |
|---|---|---|---|---|---|---|---|---|---|---|---|---|
`

// replace puts lines into the table in a document. It keeps those of cells that did not run.
func replace(path string, lines map[string]string) error {
	const begin, end = "<!-- make e2e-matrix writes from here -->\n", "<!-- to here -->\n"
	data, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	before, rest, found := strings.Cut(string(data), begin)
	table, after, closed := strings.Cut(rest, end)
	if !found || !closed {
		return fmt.Errorf("%s has no marks for the table", path)
	}
	text := before + begin + header
	for _, c := range matrix.Cells {
		for _, n := range c.Networks {
			line, ran := lines[key(c, n)]
			if _, was, there := strings.Cut(table, key(c, n)); !ran && there {
				line, _, _ = strings.Cut(was, "\n")
			} else if !ran {
				line = strings.Repeat(" not run yet |", 8)
			}
			text += key(c, n) + line + "\n"
		}
	}
	return os.WriteFile(path, []byte(text+end+after), 0o644)
}
