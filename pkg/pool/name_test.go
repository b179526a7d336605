// Copyright The crd-ipam Authors.
// SPDX-License-Identifier: Apache-2.0

package pool

import (
	"strings"
	"testing"
)

func TestCheckLabels(t *testing.T) {
	for name, want := range map[string]string{
		"rail1-{topology.kubernetes.io/rack}": "",
		"{rack}":                              "",
		"{rack}-{example.com/row}.x":          "",
		"{a}{b}":                              "",
		"{":                                   "brace too many",
		"}":                                   "brace too many",
		"a{rack":                              "brace too many",
		"a}rack{":                             "brace too many",
		"{{rack}}":                            "brace too many",
		"{{rack}":                             `"{rack" is not the key of a label`,
		"{rack}}":                             "brace too many",
		"{}":                                  `"" is not the key of a label`,
		"{.Labels.rack}":                      "is not the key of a label",
		"{a/b/c}":                             "is not the key of a label",
		"a b{rack}":                           "must be a valid CNI network name",
		"-{rack}":                             "must be a valid CNI network name",
	} {
		err := CheckLabels(name)
		if !HasLabels(name) || (want == "") != (err == nil) || err != nil && !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %q", name, err, want)
		}
	}
	if HasLabels("rail1") {
		t.Error("rail1 has labels")
	}
}

func TestExpandName(t *testing.T) {
	labels := map[string]string{"example.com/rack": "r1", "row": "7", "upper": "R1", "empty": "", "long": strings.Repeat("x", 63), "dots": "a.b_c"}
	for _, tc := range []struct{ name, want, err string }{
		{name: "rail1-{example.com/rack}", want: "rail1-r1"},
		{name: "{row}-{example.com/rack}.{row}", want: "7-r1.7"},
		{name: "{row}{row}", want: "77"},
		{name: "plain", want: "plain"},
		{name: "rail1-{rack}", err: "node n has no label rack: set it, as by kubectl label node n rack=VALUE"},
		{name: "rail1-{upper}", err: `with node n's label upper="R1" it would be "rail1-R1", which no pool can be called`},
		{name: "rail1-{empty}", err: `label empty="" it would be "rail1-"`},
		{name: "{dots}", err: `"a.b_c"`},
		{name: "{long}{long}{long}{long}", err: "at most 213 characters"},
	} {
		got, err := ExpandName(tc.name, "n", labels)
		if got != tc.want || (tc.err == "") != (err == nil) || err != nil && !strings.Contains(err.Error(), tc.err) {
			t.Errorf("%s: %q, %v", tc.name, got, err)
		}
		if err == nil && !MatchesName(tc.name, got) {
			t.Errorf("%s does not match %s", tc.name, got)
		}
	}
	for name, other := range map[string]string{"rail1-{rack}": "rail1-", "a.{rack}": "axr", "{rack}": "", "x{rack}": "ax1", "{rack}x": "1xa"} {
		if MatchesName(name, other) {
			t.Errorf("%s matches %q", name, other)
		}
	}
}
