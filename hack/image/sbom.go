// Copyright The crd-ipam Authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"crypto/sha256"
	"debug/buildinfo"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"runtime/debug"
	"slices"
	"strings"
)

// Types of SPDX 2.3, as far as they are used.
type (
	spdxDocument struct {
		Version           string             `json:"spdxVersion"`
		DataLicense       string             `json:"dataLicense"`
		ID                string             `json:"SPDXID"`
		Name              string             `json:"name"`
		DocumentNamespace string             `json:"documentNamespace"`
		CreationInfo      spdxCreation       `json:"creationInfo"`
		Packages          []spdxPackage      `json:"packages"`
		Relationships     []spdxRelationship `json:"relationships"`
	}
	spdxCreation struct {
		Created  string   `json:"created"`
		Creators []string `json:"creators"`
	}
	spdxPackage struct {
		ID               string         `json:"SPDXID"`
		Name             string         `json:"name"`
		Version          string         `json:"versionInfo"`
		DownloadLocation string         `json:"downloadLocation"`
		FilesAnalyzed    bool           `json:"filesAnalyzed"`
		FileName         string         `json:"packageFileName,omitempty"`
		LicenseDeclared  string         `json:"licenseDeclared"`
		Checksums        []spdxChecksum `json:"checksums,omitempty"`
		ExternalRefs     []spdxRef      `json:"externalRefs,omitempty"`
	}
	spdxChecksum struct {
		Algorithm string `json:"algorithm"`
		Value     string `json:"checksumValue"`
	}
	spdxRef struct {
		Category string `json:"referenceCategory"`
		Type     string `json:"referenceType"`
		Locator  string `json:"referenceLocator"`
	}
	spdxRelationship struct {
		Of   string `json:"spdxElementId"`
		Type string `json:"relationshipType"`
		To   string `json:"relatedSpdxElement"`
	}
)

// billOfMaterials returns an SPDX document of the commands in dir, which lie below root in
// the package: each with its checksum and the Go modules that its build recorded in it. They are read from
// the binaries that ship, so they are what was linked, not what go.mod allows.
func billOfMaterials(dir, root string, commands []string, version string) ([]byte, error) {
	doc := spdxDocument{
		Version: "SPDX-2.3", DataLicense: "CC0-1.0", ID: "SPDXRef-DOCUMENT", Name: "crd-ipam-" + version,
		// What it describes has no time of its own; neither has this.
		CreationInfo: spdxCreation{Created: "1970-01-01T00:00:00Z", Creators: []string{"Tool: crd-ipam-hack-image"}},
	}
	modules := map[string]spdxPackage{}
	for _, c := range commands {
		path := filepath.Join(dir, c)
		data, err := os.ReadFile(path)
		if err != nil {
			return nil, err
		}
		info, err := buildinfo.ReadFile(path)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", path, err)
		}
		sum := sha256.Sum256(data)
		command := spdxPackage{
			ID: spdxID("command", c), Name: c, Version: version, DownloadLocation: "NOASSERTION", FileName: root + c,
			LicenseDeclared: "Apache-2.0", Checksums: []spdxChecksum{{"SHA256", hex.EncodeToString(sum[:])}},
		}
		doc.Packages = append(doc.Packages, command)
		doc.Relationships = append(doc.Relationships, spdxRelationship{doc.ID, "DESCRIBES", command.ID})
		for _, m := range linked(info) {
			modules[m.ID] = m
			doc.Relationships = append(doc.Relationships, spdxRelationship{command.ID, "DEPENDS_ON", m.ID})
		}
	}
	for _, id := range slices.Sorted(maps.Keys(modules)) {
		doc.Packages = append(doc.Packages, modules[id])
	}
	return doc.marshal()
}

// linked returns the modules that a binary was made of, the standard library
// first.
func linked(info *buildinfo.BuildInfo) []spdxPackage {
	out := []spdxPackage{module("stdlib", strings.TrimPrefix(info.GoVersion, "go"))}
	for _, m := range info.Deps {
		out = append(out, module(effective(m).Path, effective(m).Version))
	}
	return out
}

func effective(m *debug.Module) *debug.Module {
	if m.Replace != nil {
		return m.Replace
	}
	return m
}

func module(path, version string) spdxPackage {
	return spdxPackage{
		ID: spdxID("module", path+"-"+version), Name: path, Version: version,
		DownloadLocation: "NOASSERTION", LicenseDeclared: "NOASSERTION",
		ExternalRefs: []spdxRef{{"PACKAGE-MANAGER", "purl", "pkg:golang/" + path + "@" + version}},
	}
}

var notInID = regexp.MustCompile(`[^A-Za-z0-9.-]+`)

func spdxID(kind, name string) string {
	return "SPDXRef-" + kind + "-" + notInID.ReplaceAllString(name, "-")
}

// marshal completes the document with a namespace that is its content's own, as
// the specification wants it to be unique.
func (d spdxDocument) marshal() ([]byte, error) {
	body, err := json.Marshal(d)
	if err != nil {
		return nil, err
	}
	sum := sha256.Sum256(body)
	d.DocumentNamespace = "https://github.com/crd-ipam/crd-ipam/spdx/" + hex.EncodeToString(sum[:16])
	body, err = json.MarshalIndent(d, "", "  ")
	return append(body, '\n'), err
}
