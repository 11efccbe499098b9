"""QoS of services and actions that many use at once.

rclpy's defaults keep the newest ten requests, replies and feedback messages, and drop the others
without a word: the eleventh of twenty questions asked at once would never be answered.
"""

from rclpy.qos import QoSProfile, ReliabilityPolicy

MANY = QoSProfile(depth=1_000, reliability=ReliabilityPolicy.RELIABLE)
_SERVICES = {f'{name}_service_qos_profile': MANY for name in ('goal', 'result', 'cancel')}
ACTION_SERVER = {**_SERVICES, 'feedback_pub_qos_profile': MANY}
ACTION_CLIENT = {**_SERVICES, 'feedback_sub_qos_profile': MANY}
