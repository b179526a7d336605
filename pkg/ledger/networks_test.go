// Copyright The crd-ipam Authors.
// SPDX-License-Identifier: Apache-2.0

package ledger

import (
	"fmt"
	"testing"
)

func TestParseNetworks(t *testing.T) {
	for _, tc := range []struct{ text, want string }{
		{"a", "[ns/a@net1]"},
		{"a, other/b@eth5,c", "[ns/a@net1 other/b@eth5 ns/c@net3]"},
		{` [{"name": "a", "interface": "x"}, {"name": "b", "namespace": "other"}] `, "[ns/a@x other/b@net2]"},
		{"", "[]"}, {" , ", "[]"}, {"[]", "[]"},
		{`[{"name": 1}]`, "error"}, {`[`, "error"},
		{`{"name": "a"}`, "error"}, {`"a"`, "error"}, {"[null]", "error"}, {`[{"namespace": "other"}]`, "error"}, {"@eth5", "error"},
	} {
		all, err := ParseNetworks(tc.text, "ns")
		got := []string{}
		for _, s := range all {
			got = append(got, s.String()+"@"+s.Interface)
		}
		text := fmt.Sprint(got)
		if err != nil {
			text = "error"
		}
		if text != tc.want {
			t.Errorf("%q: %s, %v, want %s", tc.text, text, err, tc.want)
		}
	}
}
