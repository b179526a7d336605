// Copyright The crd-ipam Authors.
// SPDX-License-Identifier: Apache-2.0

package claim

import (
	"encoding/json"

	"k8s.io/client-go/rest"
)

// metadataOnly makes the API server send metadata only. The typed client cannot ask for
// that.
const metadataOnly = "application/json;as=PartialObjectMetadata;g=meta.k8s.io;v=v1"

// decode reads an answer whose type the client's scheme does not know.
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
