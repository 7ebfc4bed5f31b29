-- apalis' own indexes cannot range over run_at, so its fetch reads every row in backoff each time it polls.
CREATE INDEX jobs_due ON Jobs (job_type, run_at) WHERE status IN ('Pending', 'Failed') AND lock_by IS NULL;
