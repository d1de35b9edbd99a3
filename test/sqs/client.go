package sqs

import (
	"context"
	"encoding/json"
	"strconv"
	"strings"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/credentials"
	awssqs "github.com/aws/aws-sdk-go-v2/service/sqs"
	"github.com/aws/aws-sdk-go-v2/service/sqs/types"
)

// Client returns a client of the server with this URL. The URL may have a path.
func Client(server string) *awssqs.Client {
	scheme, rest, _ := strings.Cut(server, "://")
	host, _, _ := strings.Cut(rest, "/")
	return awssqs.NewFromConfig(
		aws.Config{Region: "us-east-1", Credentials: credentials.NewStaticCredentialsProvider("test", "test", "")},
		func(o *awssqs.Options) { o.BaseEndpoint = aws.String(scheme + "://" + host) })
}

// Create creates a queue at a server and returns the queue's URL. If dead is not empty,
// a message that was received maxReceive times moves to the queue of that name, which
// must exist.
func Create(ctx context.Context, server, name string, visibility time.Duration, dead string, maxReceive int) (url string, err error) {
	attributes := map[string]string{"VisibilityTimeout": strconv.Itoa(int(visibility.Seconds()))}
	if dead != "" {
		redrive, err := json.Marshal(map[string]any{"deadLetterTargetArn": "arn:aws:sqs:us-east-1:" + account + ":" + dead, "maxReceiveCount": maxReceive})
		if err != nil {
			return "", err
		}
		attributes["RedrivePolicy"] = string(redrive)
	}
	out, err := Client(server).CreateQueue(ctx, &awssqs.CreateQueueInput{QueueName: &name, Attributes: attributes})
	if err != nil {
		return "", err
	}
	return *out.QueueUrl, nil
}

// Len returns the number of messages in a queue, hidden and delayed ones included.
func Len(ctx context.Context, url string) (int, error) {
	out, err := Client(url).GetQueueAttributes(ctx, &awssqs.GetQueueAttributesInput{QueueUrl: &url, AttributeNames: []types.QueueAttributeName{types.QueueAttributeNameAll}})
	if err != nil {
		return 0, err
	}
	all := 0
	for name, value := range out.Attributes {
		if strings.HasPrefix(name, "ApproximateNumberOfMessages") {
			n, err := strconv.Atoi(value)
			if err != nil {
				return 0, err
			}
			all += n
		}
	}
	return all, nil
}
