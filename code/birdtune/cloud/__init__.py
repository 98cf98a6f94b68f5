"""Storage and machines of a cloud: S3 in and out, SageMaker's folders, the notice of a spot instance."""
