"""A task of lm-eval on a local file: of two endings of a context, which one is likelier."""

ENDINGS = """\
task: endings
dataset_path: json
dataset_kwargs:
  data_files:
    test: {data}
output_type: multiple_choice
test_split: test
doc_to_text: "{{{{context}}}}"
doc_to_choice: "{{{{[right, wrong]}}}}"
target_delimiter: ""
doc_to_target: 0
metric_list:
  - metric: acc
"""
