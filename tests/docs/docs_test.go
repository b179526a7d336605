// Copyright The crd-ipam Authors.
// SPDX-License-Identifier: Apache-2.0

// Package docs checks that the documents keep their word.
package docs

import (
	"go/ast"
	"go/parser"
	"go/token"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
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

// So is every comparison, and each says where it was reported.
func TestComparisonDocument(t *testing.T) {
	checkRows(t, "comparison.md", 15)
	root, err := testenv.Root()
	if err != nil {
		t.Fatal(err)
	}
	doc, err := os.ReadFile(filepath.Join(root, "docs", "comparison.md"))
	if err != nil {
		t.Fatal(err)
	}
	thread := regexp.MustCompile(`\[#([0-9]+)\]\(https://github.com/[^/]+/[^/]+/(?:issues|pull)/([0-9]+)\)`)
	for i, line := range strings.Split(string(doc), "\n") {
		if !strings.HasPrefix(line, "| ") || strings.HasSuffix(line, " test |") {
			continue
		}
		threads := thread.FindAllStringSubmatch(line, -1)
		if len(threads) == 0 {
			t.Errorf("line %d names no thread: %s", i+1, line)
		}
		for _, m := range threads {
			if m[1] != m[2] {
				t.Errorf("line %d: #%s leads to %s", i+1, m[1], m[2])
			}
		}
	}
}

// So is every symptom.
func TestTroubleshootingDocument(t *testing.T) { checkRows(t, "troubleshooting.md", 40) }

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
	return sourcesOf(t, root, func(path string) bool { return strings.HasSuffix(path, "_test.go") })
}

// sourcesOf reads the files below root whose paths are wanted.
func sourcesOf(t *testing.T, root string, wanted func(path string) bool) []string {
	t.Helper()
	var out []string
	err := filepath.WalkDir(root, func(path string, _ os.DirEntry, err error) error {
		if err != nil || !wanted(path) {
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

// The functions that the design document draws on the way of an ADD, a DEL and a
// reclaim exist, in the packages that it names.
func TestDesignDocument(t *testing.T) {
	root, err := testenv.Root()
	if err != nil {
		t.Fatal(err)
	}
	doc, err := os.ReadFile(filepath.Join(root, "docs", "design.md"))
	if err != nil {
		t.Fatal(err)
	}
	ways := regexp.MustCompile("(?s)```\n(ADD\n.*?)```").FindStringSubmatch(string(doc))
	if ways == nil {
		t.Fatal("there is no drawing of an ADD")
	}
	drawn := 0
	for _, way := range strings.Split(ways[1], "\n\n") {
		above := map[string]bool{} // what the functions name that are drawn so far
		seen := map[string]bool{}
		for _, m := range regexp.MustCompile(`(?m)^  ((?:cmd|pkg)/[a-z-]+) +([A-Za-z]+) `).FindAllStringSubmatch(way, -1) {
			drawn++
			names := namedIn(t, filepath.Join(root, m[1]), m[2])
			if names == nil {
				t.Errorf("%s has no function %s", m[1], m[2])
			}
			if len(above) > 0 && !seen[m[1]+m[2]] && !above[m[2]] {
				t.Errorf("%s: no function above %s names it", strings.SplitN(way, "\n", 2)[0], m[2])
			}
			maps.Copy(above, names)
			seen[m[1]+m[2]] = true // a queue calls it again
		}
	}
	if drawn < 25 {
		t.Errorf("only %d functions were read", drawn)
	}
}

// namedIn returns what the bodies of a package's functions and methods of that name name. Texts and
// comments do not count. It returns nil if there is no such function.
func namedIn(t *testing.T, dir, name string) (names map[string]bool) {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(dir, "*.go"))
	if err != nil {
		t.Fatal(err)
	}
	for _, file := range files {
		if strings.HasSuffix(file, "_test.go") {
			continue
		}
		parsed, err := parser.ParseFile(token.NewFileSet(), file, nil, parser.SkipObjectResolution)
		if err != nil {
			t.Fatal(err)
		}
		for _, d := range parsed.Decls {
			f, ok := d.(*ast.FuncDecl)
			if !ok || f.Name.Name != name || f.Body == nil {
				continue
			}
			if names == nil {
				names = map[string]bool{}
			}
			ast.Inspect(f.Body, func(n ast.Node) bool {
				if id, ok := n.(*ast.Ident); ok {
					names[id.Name] = true
				}
				return true
			})
		}
	}
	return names
}

// What the reliability document quotes as seen by the operator is what a program says.
func TestReliabilityQuotes(t *testing.T) { checkQuotes(t, "reliability.md", 5, 2, 10) }

// So is what the troubleshooting document quotes.
func TestTroubleshootingQuotes(t *testing.T) { checkQuotes(t, "troubleshooting.md", 4, 0, 30) }

// checkQuotes checks what is in quotation marks in a column of a document's tables.
func checkQuotes(t *testing.T, document string, columns, column, atLeast int) {
	t.Helper()
	root, err := testenv.Root()
	if err != nil {
		t.Fatal(err)
	}
	sources := sourcesOf(t, root, func(path string) bool {
		return strings.HasSuffix(path, ".go") && !strings.HasSuffix(path, "_test.go") && !strings.HasPrefix(path, filepath.Join(root, "tests"))
	})
	doc, err := os.ReadFile(filepath.Join(root, "docs", document))
	if err != nil {
		t.Fatal(err)
	}
	quotes := 0
	for i, line := range strings.Split(string(doc), "\n") {
		cells := strings.Split(strings.TrimPrefix(line, "| "), " | ")
		if !strings.HasPrefix(line, "| ") || len(cells) < columns {
			continue
		}
		for _, m := range regexp.MustCompile(`(?:^|[ (])"([^"]{6,})"`).FindAllStringSubmatch(cells[column], -1) {
			quotes++
			if !backedBy(sources, m[1]) {
				t.Errorf("line %d: no program says %q", i+1, m[1])
			}
		}
	}
	if quotes < atLeast {
		t.Errorf("only %d quotes were read", quotes)
	}
}

func backedBy(sources []string, words string) bool {
	for _, s := range sources {
		if strings.Contains(s, words) {
			return true
		}
	}
	return false
}

// Each room imports no other room of this module than CONTRIBUTING allows.
func TestRooms(t *testing.T) {
	root, err := testenv.Root()
	if err != nil {
		t.Fatal(err)
	}
	doc, err := os.ReadFile(filepath.Join(root, "CONTRIBUTING.md"))
	if err != nil {
		t.Fatal(err)
	}
	rooms, err := filepath.Glob(filepath.Join(root, "pkg", "*"))
	if err != nil {
		t.Fatal(err)
	}
	imported := regexp.MustCompile(`(?m)^\t(?:[a-z0-9]+ )?"github.com/crd-ipam/crd-ipam/(?:pkg/)?([a-z]+)`)
	for _, room := range rooms {
		name := filepath.Base(room)
		row := regexp.MustCompile("(?m)^\\| `pkg/" + name + "` \\|.*\\| ([a-z, ]+) \\|$").FindSubmatch(doc)
		if row == nil {
			t.Errorf("no row for pkg/%s", name)
			continue
		}
		allowed := strings.Split(string(row[1]), ", ")
		files := sourcesOf(t, room, func(path string) bool {
			return strings.HasSuffix(path, ".go") && !strings.HasSuffix(path, "_test.go")
		})
		used := map[string]bool{}
		for _, file := range files {
			for _, m := range imported.FindAllStringSubmatch(file, -1) {
				if used[m[1]] = true; !slices.Contains(allowed, m[1]) {
					t.Errorf("pkg/%s imports %s, which the table does not allow", name, m[1])
				}
			}
		}
		for _, other := range allowed {
			if !used[other] {
				t.Errorf("pkg/%s does not import %s, which the table has", name, other)
			}
		}
	}
}
