// Copyright The crd-ipam Authors.
// SPDX-License-Identifier: Apache-2.0

package claim

import (
	"encoding/json"

	"k8s.io/client-go/rest"
)

// metadataOnly makes the API server send metadata only: the typed client has no words
// for it.
const metadataOnly = "application/json;as=PartialObjectMetadata;g=meta.k8s.io;v=v1"

// decode reads an answer of which the client's scheme need not know the type.
func decode(result rest.Result, into any) error {
	if err := result.Error(); err != nil { // says more than the error of Raw
		return err
	}
	data, err := result.Raw()
	if err != nil {
		return err
	}
	return json.Unmarshal(data, into)
}
