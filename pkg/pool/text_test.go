// Copyright The crd-ipam Authors.
// SPDX-License-Identifier: Apache-2.0

package pool

import (
	"encoding/json"
	"reflect"
	"testing"
)

func TestPrintable(t *testing.T) {
	for text, want := range map[string]string{
		"plain, ü and 東": "plain, ü and 東", "a\n  ok     b\r\n\nc\n": "a; ok     b; c", "a\tb\u00a0c": "a b c", "": "",
		"\x1b[2J\x1b]0;owned\a": `\x1b[2J\x1b]0;owned\a`, "\u009b2J": `\u009b2J`, "a\u202eb": `a\u202eb`, "\xff": "\ufffd", `a\nb`: `a\nb`,
	} {
		if got := Printable(text); got != want {
			t.Errorf("%q: %q, want %q", text, got, want)
		}
	}
}

// JSON shows other people's texts, and no terminal obeys them.
func TestEscapeJSON(t *testing.T) {
	const text = "{\"message\": \"a\u009b31mb\u202ec\u2066d é 漢\"}"
	got := EscapeJSON(text, `\u%04x`)
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
