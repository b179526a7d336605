// Copyright The crd-ipam Authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"encoding/json"
	"fmt"
	"io"
	"strings"
	"time"
	"unicode/utf8"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/duration"
	"sigs.k8s.io/yaml"

	"github.com/crd-ipam/crd-ipam/pkg/inspect"
	"github.com/crd-ipam/crd-ipam/pkg/pool"
)

// apiVersion of what -o json writes: within one, fields are added and never changed.
const apiVersion = "ipam.cli/v1"

// document is what -o json writes.
type document struct {
	APIVersion string `json:"apiVersion"`
	Kind       string `json:"kind"`
	Items      any    `json:"items"`
	// Of check only.
	Summary *summary `json:"summary,omitempty"`
	Skipped []string `json:"skipped,omitempty"`
}

type summary struct {
	Pools       int `json:"pools"`
	Allocations int `json:"allocations"`
	Pods        int `json:"pods"`
}

// print writes an answer in the form that was asked for.
func (o *options) print(kind string, items any, report *inspect.Report, columns func(*printer)) error {
	if o.output == "" {
		columns(o.printer())
		return nil
	}
	o.printer() // removes a line about progress
	d := document{APIVersion: apiVersion, Kind: kind, Items: items}
	if report != nil {
		d.Summary, d.Skipped = &summary{report.Pools, report.Allocations, report.Pods}, report.Skipped
	}
	data, err := json.MarshalIndent(d, "", "  ")
	if err != nil {
		return err
	}
	if strings.Contains(string(data[:min(len(data), 200)]), `"items": null`) { // no list is an empty one
		data = []byte(strings.Replace(string(data), `"items": null`, `"items": []`, 1))
	}
	if o.output == "yaml" {
		// YAML has no such escapes, so it shows them as they are.
		if data, err = yaml.JSONToYAML([]byte(pool.EscapeJSON(string(data), `\\u%04x`))); err != nil {
			return err
		}
		_, err = o.out.Write(data)
		return err
	}
	_, err = fmt.Fprintln(o.out, pool.EscapeJSON(string(data), `\u%04x`))
	return err
}

// printer writes columns.
type printer struct {
	out    io.Writer
	now    time.Time
	colour bool
}

// The colours, which say nothing that the words do not.
const (
	plain  = ""
	red    = "31"
	green  = "32"
	yellow = "33"
	bold   = "1"
)

func (p *printer) paint(colour, text string) painted {
	text = pool.Printable(text)
	if !p.colour || colour == plain {
		return painted(text)
	}
	return painted("\033[" + colour + "m" + text + "\033[0m")
}

// painted is a text that is clean, and may have colours.
type painted string

// printf prints what comes from the cluster: every string among the arguments is made clean.
func (p *printer) printf(format string, args ...any) {
	for i, arg := range args {
		if text, ok := arg.(string); ok {
			args[i] = pool.Printable(text)
		}
	}
	fmt.Fprintf(p.out, format, args...)
}

// cell is a text with a colour.
type cell struct{ colour, text string }

func text(s string) cell { return cell{text: s} }

// table writes rows in columns, the last one not padded.
func (p *printer) table(header []string, rows [][]cell) {
	first := make([]cell, len(header))
	width := make([]int, len(header))
	for i, h := range header {
		first[i] = cell{bold, h}
	}
	rows = append([][]cell{first}, rows...)
	for _, row := range rows {
		for i, c := range row {
			c.text = pool.Printable(c.text)
			row[i] = c
			width[i] = max(width[i], utf8.RuneCountInString(c.text))
		}
	}
	for _, row := range rows {
		var line strings.Builder
		for i, c := range row {
			line.WriteString(string(p.paint(c.colour, c.text)))
			if i < len(row)-1 {
				line.WriteString(strings.Repeat(" ", width[i]-utf8.RuneCountInString(c.text)+3))
			}
		}
		fmt.Fprintln(p.out, strings.TrimRight(line.String(), " "))
	}
}

// age is how old something is, as kubectl says it.
func (p *printer) age(t metav1.Time) cell {
	if t.IsZero() {
		return text("")
	}
	return text(duration.HumanDuration(p.now.Sub(t.Time)))
}
