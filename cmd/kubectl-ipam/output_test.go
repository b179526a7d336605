// Copyright The crd-ipam Authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"encoding/json"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/crd-ipam/crd-ipam/pkg/inspect"
)

func TestClean(t *testing.T) {
	for text, want := range map[string]string{
		"plain, ü and 東": "plain, ü and 東", "a\n  ok     b\r\n\nc\n": "a; ok     b; c", "a\tb\u00a0c": "a b c", "": "",
		"\x1b[2J\x1b]0;owned\a": `\x1b[2J\x1b]0;owned\a`, "\u009b2J": `\u009b2J`, "a\u202eb": `a\u202eb`, "\xff": "\ufffd", `a\nb`: `a\nb`,
	} {
		if got := clean(text); got != want {
			t.Errorf("%q: %q, want %q", text, got, want)
		}
	}
}

// What people can write into the cluster neither moves the cursor nor begins a line.
// JSON shows other people's texts, and no terminal obeys them.
func TestJSONIsClean(t *testing.T) {
	const text = "{\"message\": \"a\u009b31mb\u202ec\u2066d é 漢\"}"
	got := escaped(text)
	if want := `{"message": "a\u009b31mb\u202ec\u2066d é 漢"}`; got != want {
		t.Errorf("got %s, want %s", got, want)
	}
	var a, b any
	if err := json.Unmarshal([]byte(text), &a); err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal([]byte(got), &b); err != nil || !reflect.DeepEqual(a, b) {
		t.Errorf("%v says %v, %v", a, b, err)
	}
}

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
