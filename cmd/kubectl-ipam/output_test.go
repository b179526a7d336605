// Copyright The crd-ipam Authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"io"
	"strings"
	"testing"
	"time"

	"github.com/crd-ipam/crd-ipam/pkg/inspect"
)

// Scripts read what other people have written, and no terminal obeys it.
func TestDocumentsAreClean(t *testing.T) {
	for _, evil := range []string{"\u202e", "\u200e", "\u009b31m", "\u0085", "\x1b[31m", "\x7f", "\ufeff"} {
		for _, output := range []string{"json", "yaml"} {
			var out bytes.Buffer
			o := &options{output: output, out: &out, err: io.Discard}
			if err := o.print("Kind", []string{"a" + evil + "b"}, nil, nil); err != nil {
				t.Errorf("-o %s with %q: %v", output, evil, err)
			}
			if output == "json" && evil == "\ufeff" { // is invisible, and does nothing
				continue
			}
			if strings.Contains(out.String(), evil) {
				t.Errorf("-o %s writes %q", output, evil)
			}
		}
	}
}

// What people can write into the cluster neither moves the cursor nor begins a line.
func TestColumnsAreClean(t *testing.T) {
	const evil = "x\n  ok     Allocation    10.0.0.9 is held\x1b[2J"
	var out bytes.Buffer
	p := &printer{out: &out, now: time.Now()}
	p.chains([]inspect.Chain{{Pod: evil, Network: evil, Interface: evil, Links: []inspect.Link{{Link: "Pod", Message: evil, Mend: evil}}}})
	p.holders([]inspect.Holder{{Address: evil, Interface: evil}})
	p.plans([]inspect.Plan{{Refused: evil, Lose: []string{evil}}})
	p.pools([]inspect.Pool{{Subnet: evil, Reason: evil, Message: evil}}, "", true, true)
	p.free([]inspect.Free{{Node: evil}})
	if text := out.String(); strings.Contains(text, "\x1b") || strings.Contains(text, "\n  ok ") {
		t.Error(text)
	}
	if got := p.paint(red, "a"); got != "a" {
		t.Errorf("%q has a colour", got)
	}
	p.colour = true
	if got := p.paint(red, "a\x1b"); got != "\x1b[31ma\\x1b\x1b[0m" {
		t.Errorf("painted %q", got)
	}
}

// A word that is no command is an error, and not an occasion for help.
func TestUnknownCommands(t *testing.T) {
	for _, args := range [][]string{{"foo"}, {"migrate", "whereabout"}, {"migrate", "whereabouts", "aply"}, {"check", "x"}} {
		var out bytes.Buffer
		root := newRoot(strings.NewReader(""), &out, &out)
		root.SetArgs(args)
		if err := root.Execute(); err == nil {
			t.Errorf("%q: %s", args, out.String())
		}
	}
}
