package gateway

import (
	"context"
	"strings"

	"github.com/versity/versitygw/auth"
	s3utils "github.com/versity/versitygw/s3api/utils"
	"github.com/versity/versitygw/s3err"
)

// accounts holds the program's account and the uploader's. A wrong access key is a
// 403, as in S3; versitygw's own service returns a 404, which clients read as a
// missing bucket.
type accounts struct {
	auth.IAMService // refuses every change
	program         auth.Account
	uploader        Uploader
}

func (a accounts) GetUserAccount(access string) (auth.Account, error) {
	switch {
	case access == "":
	case access == a.program.Access:
		return a.program, nil
	case access == a.uploader.Access:
		return auth.Account{Access: access, Secret: a.uploader.Secret, Role: auth.RoleUser}, nil
	}
	return auth.Account{}, auth.ErrNoSuchUser
}

// An Uploader is the account of uploaders. It may list, read, write and delete the
// objects of one root, the operator's catalog.toml included, and nothing else: see
// [actions].
type Uploader struct {
	Access, Secret string
	// Bucket and Prefix are the root. Prefix is empty or ends in a slash.
	Bucket, Prefix string
}

// actions are the S3 actions of an uploader, and the resources each is for. Any
// other action is denied, even if a bucket's policy allows it.
var actions = map[auth.Action]func(u Uploader, resource, prefix string) bool{
	auth.GetObjectAction:                Uploader.owns,
	auth.GetObjectAttributesAction:      Uploader.owns,
	auth.PutObjectAction:                Uploader.writes,
	auth.DeleteObjectAction:             Uploader.owns,
	auth.AbortMultipartUploadAction:     Uploader.owns,
	auth.ListMultipartUploadPartsAction: Uploader.owns,
	// Clients request tags and ACL of an object before they copy it. There are no
	// ACLs: s3cmd accepts 501 for an answer, but not 403.
	auth.GetObjectTaggingAction: Uploader.owns,
	auth.GetObjectAclAction:     Uploader.owns,

	auth.ListBucketAction:                 Uploader.lists,
	auth.ListBucketMultipartUploadsAction: Uploader.lists,

	auth.GetBucketLocationAction: Uploader.names,
	// rclone requests it before it deletes. No bucket has versions.
	auth.GetBucketVersioningAction: Uploader.names,
	// Clients create the bucket before they upload, and expect the answer that it
	// exists.
	auth.CreateBucketAction: Uploader.names,

	// The answer has the uploader's bucket only.
	auth.ListAllMyBucketsAction: func(Uploader, string, string) bool { return true },
}

// names reports whether resource is the bucket.
func (u Uploader) names(resource, _ string) bool { return resource == auth.ResourceArnPrefix+u.Bucket }

// lists reports whether resource is the bucket, and a listing of it that
// begins with prefix stays in the root.
func (u Uploader) lists(resource, prefix string) bool {
	return u.names(resource, "") && strings.HasPrefix(prefix, u.Prefix)
}

// writes reports whether resource is an object of the root, or the bucket,
// which a form writes to: see reaches.
func (u Uploader) writes(resource, _ string) bool {
	return u.owns(resource, "") || u.names(resource, "")
}

// owns reports whether resource is an object of the root.
func (u Uploader) owns(resource, _ string) bool {
	return strings.HasPrefix(resource, auth.ResourceArnPrefix+u.Bucket+"/"+u.Prefix)
}

var _ auth.PolicyEvaluator = accounts{}

// EvaluatePolicy implements auth.PolicyEvaluator. versitygw calls it for every
// request that is not the program's.
func (a accounts) EvaluatePolicy(access, _ string, asked []auth.Action, resources []string, condition map[string][]string) (auth.PolicyEvaluation, error) {
	prefix := strings.Join(condition["s3:prefix"], "")
	out := auth.PolicyEvaluation{PrincipalArn: access}
	decide(&out.Decisions, resources, asked, func(resource string, action auth.Action) bool {
		may, listed := actions[action]
		return listed && access == a.uploader.Access && may(a.uploader, resource, prefix)
	})
	return out, nil
}

// reaches returns AccessDenied if the request behind ctx is an uploader's and p
// is outside the root. It covers what EvaluatePolicy cannot see: the key of a
// form, and which of two readings of a copy source is the object.
func (b *backend) reaches(ctx context.Context, p place) error {
	account, _ := ctx.Value(string(s3utils.ContextKeyAccount)).(auth.Account)
	if u := b.uploader; u.Access != "" && account.Access == u.Access && (p.bucket != u.Bucket || !strings.HasPrefix(p.key, u.Prefix)) {
		return s3err.GetAPIError(s3err.ErrAccessDenied)
	}
	return nil
}

// decide fills a matrix of decisions. Their type is not exported: 1 is allow,
// and 2 is an explicit deny, which no other policy overrides.
func decide[D ~int](matrix *[][]D, resources []string, asked []auth.Action, may func(string, auth.Action) bool) {
	for _, resource := range resources {
		row := make([]D, len(asked))
		for i, action := range asked {
			row[i] = 2
			if may(resource, action) {
				row[i] = 1
			}
		}
		*matrix = append(*matrix, row)
	}
}
