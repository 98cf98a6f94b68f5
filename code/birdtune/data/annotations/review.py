"""review.csv, which the page of `review` saves: what somebody said of detections, one a row.

    recording,start_s,end_s,detected,decision,label
    nights/a.wav,61,64,Strix aluco,yes,Strix aluco
    nights/a.wav,70.5,73.5,Strix aluco,other,Asio otus
    nights/b.wav,12,15,Strix aluco,no,
"""

from typing import Final

TABLE_NAME: Final = "review.csv"
COLUMNS: Final = ("recording", "start_s", "end_s", "detected", "decision", "label")
