#!/bin/sh
# Creates what imageroot needs in MinIO: two buckets, a user with rights on these
# only, and events of the images, sent to the webhook that MinIO's environment
# names. It can be run again at any time.
set -eu
: "${MINIO_URL:=http://127.0.0.1:9000}"
: "${MINIO_ROOT_USER:?}" "${MINIO_ROOT_PASSWORD:?}" "${AWS_ACCESS_KEY_ID:?}" "${AWS_SECRET_ACCESS_KEY:?}"
MC_CONFIG_DIR=$(mktemp -d)
export MC_CONFIG_DIR
trap 'rm -rf "$MC_CONFIG_DIR"' EXIT

# Secrets are passed on standard input: every user can see arguments. The server
# may still be starting.
tries=30
until printf '%s\n' "$MINIO_ROOT_USER" "$MINIO_ROOT_PASSWORD" | mc alias set here "$MINIO_URL"; do
	tries=$((tries - 1))
	[ $tries -gt 0 ] || exit 1
	sleep 1
done
mc mb --ignore-existing here/images here/catalog
printf '%s\n' "$AWS_ACCESS_KEY_ID" "$AWS_SECRET_ACCESS_KEY" | mc admin user add here

cat > "$MC_CONFIG_DIR/policy.json" <<'POLICY'
{
  "Version": "2012-10-17",
  "Statement": [{
    "Effect": "Allow",
    "Action": ["s3:*"],
    "Resource": ["arn:aws:s3:::images", "arn:aws:s3:::images/*", "arn:aws:s3:::catalog", "arn:aws:s3:::catalog/*"]
  }]
}
POLICY
mc admin policy create here imageroot "$MC_CONFIG_DIR/policy.json"
case $(mc admin user info here "$AWS_ACCESS_KEY_ID") in
*"PolicyName: imageroot"*) ;;
*) mc admin policy attach here imageroot --user "$AWS_ACCESS_KEY_ID" ;;
esac

mc event add --ignore-existing here/images arn:minio:sqs::IMAGEROOT:webhook --event put,delete
