// Copyright The crd-ipam Authors.
// SPDX-License-Identifier: Apache-2.0

// Package docs checks that the documents keep their word.
package docs

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/crd-ipam/crd-ipam/tests/internal/testenv"
)

// Every row of the compatibility document is backed by a test that exists, and
// where it names a row of that test's table, the row exists.
func TestCompatibilityDocument(t *testing.T) { checkRows(t, "nv-ipam-compatibility.md", 80) }

// So is every fault.
func TestReliabilityDocument(t *testing.T) { checkRows(t, "reliability.md", 40) }

// So is every right and every threat.
func TestSecurityDocument(t *testing.T) { checkRows(t, "security.md", 18) }

// checkRows checks the tests in the last column of a document's tables.
func checkRows(t *testing.T, document string, atLeast int) {
	t.Helper()
	root, err := testenv.Root()
	if err != nil {
		t.Fatal(err)
	}
	sources := testSources(t, root)
	doc, err := os.ReadFile(filepath.Join(root, "docs", document))
	if err != nil {
		t.Fatal(err)
	}
	name := regexp.MustCompile("`(Test[A-Za-z0-9]+)(?:: ([^`]+))?`")
	rows := 0
	for i, line := range strings.Split(string(doc), "\n") {
		if !strings.HasPrefix(line, "| ") || strings.HasSuffix(line, " test |") {
			continue
		}
		rows++
		cells := strings.Split(strings.TrimSuffix(line, " |"), " | ")
		tests := name.FindAllStringSubmatch(cells[len(cells)-1], -1)
		if len(tests) == 0 {
			t.Errorf("line %d names no test: %s", i+1, line)
		}
		for _, m := range tests {
			if !backed(sources, m[1], m[2]) {
				t.Errorf("line %d: there is no %s with row %q", i+1, m[1], m[2])
			}
		}
	}
	if rows < atLeast {
		t.Errorf("only %d rows were read", rows)
	}
}

func backed(sources []string, test, row string) bool {
	for _, s := range sources {
		if strings.Contains(s, "func "+test+"(") && (row == "" || strings.Contains(s, `"`+row+`"`)) {
			return true
		}
	}
	return false
}

func testSources(t *testing.T, root string) []string {
	t.Helper()
	var out []string
	err := filepath.WalkDir(root, func(path string, _ os.DirEntry, err error) error {
		if err != nil || !strings.HasSuffix(path, "_test.go") {
			return err
		}
		data, err := os.ReadFile(path)
		out = append(out, string(data))
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return out
}
