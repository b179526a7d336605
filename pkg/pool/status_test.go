// Copyright The crd-ipam Authors.
// SPDX-License-Identifier: Apache-2.0

package pool

import "testing"

func TestIPPoolStatus(t *testing.T) {
	tests := []struct{ name, in, out string }{
		{name: "nothing"},
		{name: "IPv4 and IPv6", in: "a=10.0.0.1-10.0.0.10 b=fd00::1-fd00::1f4", out: "a=10.0.0.1-10.0.0.10 b=fd00::1-fd00::1f4"},
		{name: "order is kept", in: "b=10.0.0.11-10.0.0.20 a=10.0.0.1-10.0.0.10", out: "b=10.0.0.11-10.0.0.20 a=10.0.0.1-10.0.0.10"},
		{name: "one address", in: "a=10.0.0.1-10.0.0.1", out: "a=10.0.0.1-10.0.0.1"},
		{name: "canonical text", in: "a=fd00:0:0::1-FD00::000F b=::ffff:10.0.0.1-::ffff:10.0.0.2", out: "a=fd00::1-fd00::f b=10.0.0.1-10.0.0.2"},
		{name: "not addresses", in: "a=x-10.0.0.1 b=10.0.0.1-x c=- d=10.0.0.1- e=10.0.0-10.0.1 f=10.0.0.1-10.0.0.2", out: "f=10.0.0.1-10.0.0.2"},
		{name: "no ranges", in: "a=10.0.0.2-10.0.0.1 b=10.0.0.1-fd00::1 c=fd00::1-10.0.0.1"},
		{name: "a zone", in: "a=fe80::1%eth0-fe80::2%eth0"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			out := ipAllocations(ipBlocks(ipStatus(tt.in)))
			if got := ipText(out); got != tt.out {
				t.Errorf("got %q, want %q", got, tt.out)
			}
			if out == nil {
				t.Error("nil, which the API would refuse")
			}
			if again := ipText(ipAllocations(ipBlocks(out))); again != tt.out {
				t.Errorf("second round: got %q, want %q", again, tt.out)
			}
		})
	}
}

func TestCIDRPoolStatus(t *testing.T) {
	tests := []struct{ name, in, out string }{
		{name: "nothing"},
		{name: "IPv4 and IPv6", in: "a=10.0.0.0/24@10.0.0.1 b=fd00::/64@fd00::1", out: "a=10.0.0.0/24@10.0.0.1 b=fd00::/64@fd00::1"},
		{name: "without gateway", in: "a=10.0.0.0/24", out: "a=10.0.0.0/24"},
		{name: "order is kept", in: "b=10.0.1.0/24 a=10.0.0.0/24", out: "b=10.0.1.0/24 a=10.0.0.0/24"},
		{name: "every length", in: "a=0.0.0.0/0 b=10.0.0.0/31 c=10.0.0.0/32 d=::/0 e=fd00::/127 f=fd00::/128", out: "a=0.0.0.0/0 b=10.0.0.0/31 c=10.0.0.0/32 d=::/0 e=fd00::/127 f=fd00::/128"},
		{name: "host bits are cleared", in: "a=10.0.0.7/24@10.0.0.1", out: "a=10.0.0.0/24@10.0.0.1"},
		{name: "canonical text", in: "a=FD00:0::/64@::ffff:10.0.0.1", out: "a=fd00::/64@10.0.0.1"},
		{name: "not prefixes", in: "a=x b= c=10.0.0.0 d=10.0.0.0/33 e=10.0.0.0/-1 f=fd00::/129 g=::ffff:10.0.0.0/120 h=10.0.0.0/24", out: "h=10.0.0.0/24"},
		{name: "gateway is not an address", in: "a=10.0.0.0/24@x b=fd00::/64@fe80::1%eth0", out: "a=10.0.0.0/24 b=fd00::/64"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			out := cidrAllocations(cidrBlocks(cidrStatus(tt.in)))
			if got := cidrText(out); got != tt.out {
				t.Errorf("got %q, want %q", got, tt.out)
			}
			if out == nil {
				t.Error("nil, which the API would refuse")
			}
			if again := cidrText(cidrAllocations(cidrBlocks(out))); again != tt.out {
				t.Errorf("second round: got %q, want %q", again, tt.out)
			}
		})
	}
}
