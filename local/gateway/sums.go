package gateway

import (
	"encoding/json"
	"errors"
	"io/fs"
	"path/filepath"

	"github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/aws/aws-sdk-go-v2/service/s3/types"
	"github.com/pkg/xattr"
	"github.com/versity/versitygw/s3err"
	"github.com/versity/versitygw/s3response"
)

// sums returns the checksums that versitygw stored with a file or an upload,
// or none.
func (s subject) sums() (sums s3response.Checksum, err error) {
	value, err := s.get(attrSums)
	if errors.Is(err, xattr.ENOATTR) {
		return sums, nil
	}
	if err == nil {
		err = json.Unmarshal(value, &sums)
	}
	return sums, err
}

// askForSum has versitygw compute the checksum that the upload was created
// with: a sum that is empty names the algorithm and is compared with nothing.
// versitygw refuses a part without one where the object's is made of the
// parts', and the client of a copy has none to send.
func askForSum(p place, id string, part *s3.UploadPartInput) error {
	sums, err := subject{path: filepath.Join(p.uploads(), id)}.sums()
	if errors.Is(err, fs.ErrNotExist) {
		return s3err.GetNoSuchUploadErr(id)
	}
	if err != nil {
		return err
	}
	empty := new(string)
	switch sums.Algorithm {
	case types.ChecksumAlgorithmCrc32:
		part.ChecksumCRC32 = empty
	case types.ChecksumAlgorithmCrc32c:
		part.ChecksumCRC32C = empty
	case types.ChecksumAlgorithmCrc64nvme:
		part.ChecksumCRC64NVME = empty
	case types.ChecksumAlgorithmSha1:
		part.ChecksumSHA1 = empty
	case types.ChecksumAlgorithmSha256:
		part.ChecksumSHA256 = empty
	case types.ChecksumAlgorithmSha512:
		part.ChecksumSHA512 = empty
	case types.ChecksumAlgorithmMd5:
		part.ChecksumMD5 = empty
	case types.ChecksumAlgorithmXxhash64:
		part.ChecksumXXHASH64 = empty
	case types.ChecksumAlgorithmXxhash3:
		part.ChecksumXXHASH3 = empty
	case types.ChecksumAlgorithmXxhash128:
		part.ChecksumXXHASH128 = empty
	}
	return nil
}
