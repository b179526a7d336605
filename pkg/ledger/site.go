// Copyright The crd-ipam Authors.
// SPDX-License-Identifier: Apache-2.0

package ledger

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/pem"
	"os"
	"slices"
	"strings"

	"k8s.io/client-go/rest"
)

// SiteOf returns the site of a node: 16 hex digits that differ between clusters, and
// between two names of a node in one cluster. It makes no request. It hashes the node's
// name and the certificate authorities of the API server, which stay when the server's
// address changes; without authorities, the server's address. It returns an error if
// the file with the authorities cannot be read.
func SiteOf(config *rest.Config, node string) (string, error) {
	authorities := config.CAData
	if len(authorities) == 0 && config.CAFile != "" {
		var err error
		if authorities, err = os.ReadFile(config.CAFile); err != nil {
			return "", err
		}
	}
	var all []string
	for block, tail := pem.Decode(authorities); block != nil; block, tail = pem.Decode(tail) {
		all = append(all, string(block.Bytes))
	}
	if len(all) == 0 {
		all = []string{config.Host}
	}
	slices.Sort(all)
	sum := sha256.Sum256([]byte(node + "\n" + strings.Join(slices.Compact(all), "")))
	return hex.EncodeToString(sum[:8]), nil
}
